-- One row per message id, however often it died: round counts its replays. Times are this machine's clock, but for
-- first_seen and died_at, which come with the letter.
CREATE TABLE dead_letters (
    id TEXT PRIMARY KEY NOT NULL,
    message_id TEXT NOT NULL UNIQUE,
    round INTEGER NOT NULL,
    event_type TEXT NOT NULL,
    clerk_id TEXT,
    reason TEXT NOT NULL,
    detail TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    first_seen TEXT NOT NULL,
    died_at TEXT NOT NULL,
    -- The key of its group: what letters of one cause share.
    grp TEXT NOT NULL,
    status TEXT NOT NULL
        CONSTRAINT dead_letters_status_check CHECK (status IN ('open', 'replayed', 'applied', 'discarded')),
    -- The round of its last death: what was captured is not captured again, nor what comes late from before it.
    -- A letter is claimed only after its death was captured, so round is at most one ahead.
    captured_round INTEGER NOT NULL,
    -- Of the last replay. published_at is null until its publication is stamped.
    claimed_at TEXT,
    claimed_by TEXT,
    published_at TEXT,
    -- Since when it is applied or discarded; null while it is neither.
    settled_at TEXT,
    -- Nothing personal is left.
    erased INTEGER NOT NULL DEFAULT 0,
    -- Detail and message id in lower case, for searching.
    search TEXT NOT NULL
);

-- What each letter holds. Apart, so that listings and counts read narrow rows, and changes of status copy no bodies.
CREATE TABLE dead_letter_contents (
    letter_id TEXT PRIMARY KEY NOT NULL REFERENCES dead_letters (id) ON DELETE CASCADE,
    headers TEXT NOT NULL,
    body BLOB NOT NULL
);

-- Listings, the last to die first, and claims, the first to die first, by each filter.
CREATE INDEX dead_letters_died_at ON dead_letters (died_at, id);
CREATE INDEX dead_letters_status ON dead_letters (status, died_at, id);
CREATE INDEX dead_letters_grp ON dead_letters (grp, status, died_at, id);
CREATE INDEX dead_letters_reason ON dead_letters (reason, status, died_at, id);
CREATE INDEX dead_letters_event_type ON dead_letters (event_type, status, died_at, id);
CREATE INDEX dead_letters_clerk_id ON dead_letters (clerk_id) WHERE clerk_id IS NOT NULL;
-- Replays to be taken up, and what retention ends.
CREATE INDEX dead_letters_unstamped ON dead_letters (claimed_at, id) WHERE status = 'replayed' AND published_at IS NULL;
CREATE INDEX dead_letters_settled_at ON dead_letters (settled_at) WHERE settled_at IS NOT NULL;

-- What happened to each letter, in the order of n.
CREATE TABLE dead_letter_history (
    n INTEGER PRIMARY KEY,
    letter_id TEXT NOT NULL REFERENCES dead_letters (id) ON DELETE CASCADE,
    at TEXT NOT NULL,
    action TEXT NOT NULL,
    round INTEGER NOT NULL,
    by TEXT NOT NULL,
    note TEXT
);
CREATE INDEX dead_letter_history_letter_id ON dead_letter_history (letter_id, n);

-- How many letters there are of each kind, without reading them.
CREATE TABLE dead_letter_tallies (
    grp TEXT NOT NULL,
    reason TEXT NOT NULL,
    event_type TEXT NOT NULL,
    status TEXT NOT NULL,
    letters INTEGER NOT NULL,
    PRIMARY KEY (grp, reason, event_type, status)
) WITHOUT ROWID;

CREATE TRIGGER dead_letters_tally_insert AFTER INSERT ON dead_letters BEGIN
    INSERT INTO dead_letter_tallies VALUES (NEW.grp, NEW.reason, NEW.event_type, NEW.status, 1)
    ON CONFLICT DO UPDATE SET letters = letters + 1;
END;
CREATE TRIGGER dead_letters_tally_update AFTER UPDATE OF grp, reason, event_type, status ON dead_letters
WHEN (OLD.grp, OLD.reason, OLD.event_type, OLD.status) IS NOT (NEW.grp, NEW.reason, NEW.event_type, NEW.status) BEGIN
    UPDATE dead_letter_tallies SET letters = letters - 1
    WHERE grp = OLD.grp AND reason = OLD.reason AND event_type = OLD.event_type AND status = OLD.status;
    INSERT INTO dead_letter_tallies VALUES (NEW.grp, NEW.reason, NEW.event_type, NEW.status, 1)
    ON CONFLICT DO UPDATE SET letters = letters + 1;
END;
CREATE TRIGGER dead_letters_tally_delete AFTER DELETE ON dead_letters BEGIN
    UPDATE dead_letter_tallies SET letters = letters - 1
    WHERE grp = OLD.grp AND reason = OLD.reason AND event_type = OLD.event_type AND status = OLD.status;
END;
-- What nothing is left of, without which every cause that ever was would stay.
CREATE TRIGGER dead_letter_tallies_empty AFTER UPDATE ON dead_letter_tallies WHEN NEW.letters = 0 BEGIN
    DELETE FROM dead_letter_tallies
    WHERE grp = NEW.grp AND reason = NEW.reason AND event_type = NEW.event_type AND status = NEW.status;
END;

-- A sample of the requests that the ingress turned away.
CREATE TABLE rejections (
    id TEXT PRIMARY KEY NOT NULL,
    at TEXT NOT NULL,
    address TEXT NOT NULL,
    reason TEXT NOT NULL,
    -- Names only.
    headers TEXT NOT NULL
);
CREATE INDEX rejections_at ON rejections (at, id);

-- Ignored messages are forgotten sooner than others.
CREATE INDEX inbox_ignored ON inbox (processed_at) WHERE outcome = 'ignored';
