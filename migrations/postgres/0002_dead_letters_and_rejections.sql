-- One row per message id, however often it died: round counts its replays. Times are the database's clock, but for
-- first_seen and died_at, which come with the letter.
CREATE TABLE dead_letters (
    id uuid PRIMARY KEY,
    message_id text NOT NULL CONSTRAINT dead_letters_message_id_key UNIQUE,
    round bigint NOT NULL,
    event_type text NOT NULL,
    clerk_id text,
    reason text NOT NULL,
    detail text NOT NULL,
    attempts bigint NOT NULL,
    first_seen timestamptz NOT NULL,
    died_at timestamptz NOT NULL,
    -- The key of its group: what letters of one cause share.
    grp text NOT NULL,
    status text NOT NULL
        CONSTRAINT dead_letters_status_check CHECK (status IN ('open', 'replayed', 'applied', 'discarded')),
    -- The round of its last death: what was captured is not captured again, nor what comes late from before it.
    -- A letter is claimed only after its death was captured, so round is at most one ahead.
    captured_round bigint NOT NULL,
    -- Of the last replay. published_at is null until its publication is stamped.
    claimed_at timestamptz,
    claimed_by text,
    published_at timestamptz,
    -- Since when it is applied or discarded; null while it is neither.
    settled_at timestamptz,
    -- Nothing personal is left.
    erased boolean NOT NULL DEFAULT false,
    -- Detail and message id in lower case, for searching. With the extension pg_trgm an index on it
    -- (USING gin (search gin_trgm_ops)) makes rare words fast among millions; nothing else has to change.
    search text NOT NULL
);

-- What each letter holds. Apart, so that listings and counts read narrow rows, and changes of status copy no bodies.
CREATE TABLE dead_letter_contents (
    letter_id uuid PRIMARY KEY REFERENCES dead_letters (id) ON DELETE CASCADE,
    headers jsonb NOT NULL,
    body bytea NOT NULL
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
    n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    letter_id uuid NOT NULL REFERENCES dead_letters (id) ON DELETE CASCADE,
    at timestamptz NOT NULL,
    action text NOT NULL,
    round bigint NOT NULL,
    by text NOT NULL,
    note text
);
CREATE INDEX dead_letter_history_letter_id ON dead_letter_history (letter_id, n);

-- How many letters there are of each kind, without reading them: a ledger whose sums are the counts. Entries are only
-- added, so that nobody waits for anybody; retention sums them up now and then.
CREATE TABLE dead_letter_tallies (
    grp text NOT NULL,
    reason text NOT NULL,
    event_type text NOT NULL,
    status text NOT NULL,
    letters bigint NOT NULL
);

CREATE FUNCTION dead_letters_tally() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO dead_letter_tallies
        SELECT grp, reason, event_type, status, count(*) FROM after GROUP BY 1, 2, 3, 4;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO dead_letter_tallies
        SELECT grp, reason, event_type, status, -count(*) FROM before GROUP BY 1, 2, 3, 4;
    ELSE
        INSERT INTO dead_letter_tallies
        SELECT grp, reason, event_type, status, sum(letters)
        FROM (
            SELECT grp, reason, event_type, status, -1 AS letters FROM before
            UNION ALL
            SELECT grp, reason, event_type, status, 1 FROM after
        ) AS moved
        GROUP BY 1, 2, 3, 4 HAVING sum(letters) <> 0;
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER dead_letters_tally_insert AFTER INSERT ON dead_letters
    REFERENCING NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION dead_letters_tally();
CREATE TRIGGER dead_letters_tally_update AFTER UPDATE ON dead_letters
    REFERENCING OLD TABLE AS before NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION dead_letters_tally();
CREATE TRIGGER dead_letters_tally_delete AFTER DELETE ON dead_letters
    REFERENCING OLD TABLE AS before FOR EACH STATEMENT EXECUTE FUNCTION dead_letters_tally();

-- A sample of the requests that the ingress turned away.
CREATE TABLE rejections (
    id uuid PRIMARY KEY,
    at timestamptz NOT NULL,
    address text NOT NULL,
    reason text NOT NULL,
    -- Names only.
    headers jsonb NOT NULL
);
CREATE INDEX rejections_at ON rejections (at, id);

-- Ignored messages are forgotten sooner than others.
CREATE INDEX inbox_ignored ON inbox (processed_at) WHERE outcome = 'ignored';
