-- What people did, and processes in their name: the audit log. Runs of sync and grants of tiers have tables of their own. Times are
-- the database's clock.
CREATE TABLE operations (
    id TEXT PRIMARY KEY NOT NULL,
    kind TEXT NOT NULL
        CONSTRAINT operations_kind_check CHECK (kind IN ('replay', 'edit', 'discard', 'restore', 'reveal', 'note', 'sync')),
    who TEXT NOT NULL,
    note TEXT,
    -- What was selected, in people's terms; {} once it is erased.
    what TEXT NOT NULL,
    -- Where it is about one user, one letter.
    clerk_id TEXT,
    letter_id TEXT,
    started_at TEXT NOT NULL,
    -- Null while it runs or is paused.
    ended_at TEXT,
    state TEXT NOT NULL
        CONSTRAINT operations_state_check CHECK (state IN
            ('running', 'paused', 'complete', 'limit', 'stopped', 'halted', 'failed')),
    -- Why it ended so, or what it waits for.
    detail TEXT,
    -- Letters: how many were meant; claims of others that a replay took over; claimed; in the queue again (or discarded, restored);
    -- of those, took effect, and died again.
    expected INTEGER NOT NULL,
    taken_up INTEGER NOT NULL DEFAULT 0,
    claimed INTEGER NOT NULL DEFAULT 0,
    published INTEGER NOT NULL DEFAULT 0,
    applied INTEGER NOT NULL DEFAULT 0,
    died INTEGER NOT NULL DEFAULT 0,
    -- Of a replay that has not ended: the filter, the limit, the rate, the ramp, the letters that were open at its start.
    order_given TEXT,
    -- Of a ramped replay: its step, and how many letters it had published, and how many had died again, when the step began.
    step INTEGER NOT NULL DEFAULT 0,
    step_from INTEGER NOT NULL DEFAULT 0,
    step_died INTEGER NOT NULL DEFAULT 0,
    -- What people want of it.
    wish TEXT NOT NULL DEFAULT 'run' CONSTRAINT operations_wish_check CHECK (wish IN ('run', 'pause', 'stop')),
    -- The process that works on it, until this time unless it is renewed.
    holder TEXT,
    held_until TEXT
);
CREATE INDEX operations_started_at ON operations (started_at, id);
CREATE INDEX operations_ended_at ON operations (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX operations_open ON operations (started_at) WHERE ended_at IS NULL;
CREATE INDEX operations_clerk_id ON operations (clerk_id) WHERE clerk_id IS NOT NULL;
CREATE INDEX operations_letter_id ON operations (letter_id) WHERE letter_id IS NOT NULL;

-- The replay that claimed the letter last.
ALTER TABLE dead_letters ADD COLUMN operation_id TEXT;
CREATE INDEX dead_letters_operation_id ON dead_letters (operation_id, status) WHERE operation_id IS NOT NULL;
