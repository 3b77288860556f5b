-- What people did, and processes in their name: the audit log. Runs of sync and grants of tiers have tables of their own. Times are
-- the database's clock.
CREATE TABLE operations (
    id uuid PRIMARY KEY,
    kind text NOT NULL
        CONSTRAINT operations_kind_check CHECK (kind IN ('replay', 'edit', 'discard', 'restore', 'reveal', 'note', 'sync')),
    who text NOT NULL,
    note text,
    -- What was selected, in people's terms; {} once it is erased.
    what jsonb NOT NULL,
    -- Where it is about one user, one letter.
    clerk_id text,
    letter_id uuid,
    started_at timestamptz NOT NULL,
    -- Null while it runs or is paused.
    ended_at timestamptz,
    state text NOT NULL
        CONSTRAINT operations_state_check CHECK (state IN
            ('running', 'paused', 'complete', 'limit', 'stopped', 'halted', 'failed')),
    -- Why it ended so, or what it waits for.
    detail text,
    -- Letters: how many were meant; claims of others that a replay took over; claimed; in the queue again (or discarded, restored);
    -- of those, took effect, and died again.
    expected bigint NOT NULL,
    taken_up bigint NOT NULL DEFAULT 0,
    claimed bigint NOT NULL DEFAULT 0,
    published bigint NOT NULL DEFAULT 0,
    applied bigint NOT NULL DEFAULT 0,
    died bigint NOT NULL DEFAULT 0,
    -- Of a replay that has not ended: the filter, the limit, the rate, the ramp, the letters that were open at its start.
    order_given jsonb,
    -- Of a ramped replay: its step, and how many letters it had published, and how many had died again, when the step began.
    step bigint NOT NULL DEFAULT 0,
    step_from bigint NOT NULL DEFAULT 0,
    step_died bigint NOT NULL DEFAULT 0,
    -- What people want of it.
    wish text NOT NULL DEFAULT 'run' CONSTRAINT operations_wish_check CHECK (wish IN ('run', 'pause', 'stop')),
    -- The process that works on it, until this time unless it is renewed.
    holder uuid,
    held_until timestamptz
);
CREATE INDEX operations_started_at ON operations (started_at, id);
CREATE INDEX operations_ended_at ON operations (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX operations_open ON operations (started_at) WHERE ended_at IS NULL;
CREATE INDEX operations_clerk_id ON operations (clerk_id) WHERE clerk_id IS NOT NULL;
CREATE INDEX operations_letter_id ON operations (letter_id) WHERE letter_id IS NOT NULL;

-- The replay that claimed the letter last.
ALTER TABLE dead_letters ADD COLUMN operation_id uuid;
CREATE INDEX dead_letters_operation_id ON dead_letters (operation_id, status) WHERE operation_id IS NOT NULL;
