-- Clerk's API as a second source of news, beside its webhooks.

-- Clerk's whole user object, of the row's version. Null where it is not kept.
ALTER TABLE users ADD COLUMN clerk jsonb;

-- Where a letter's message came from: webhook or api.
ALTER TABLE dead_letters ADD COLUMN origin text NOT NULL DEFAULT 'webhook';

-- The instances of Clerk that were ever seen. One of them owns the table users.
CREATE TABLE instances (
    instance_id text PRIMARY KEY,
    first_seen_at timestamptz NOT NULL,
    first_seen_by text NOT NULL
        CONSTRAINT instances_first_seen_by_check CHECK (first_seen_by IN ('webhook', 'sync', 'adopted')),
    owner boolean NOT NULL,
    last_webhook_at timestamptz
);
CREATE UNIQUE INDEX instances_owner ON instances (owner) WHERE owner;

-- What one process of all does at a time. It is free once expires_at is over, by this database's clock.
CREATE TABLE leases (
    name text PRIMARY KEY,
    -- Null once it was given back; host and process still say who had it.
    holder uuid,
    host text NOT NULL,
    process text NOT NULL,
    taken_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    -- What the holder last said of its work.
    state jsonb
);

-- Times are this database's clock, but for finished_at, which comes with the run.
CREATE TABLE sync_runs (
    id uuid PRIMARY KEY,
    started_at timestamptz NOT NULL,
    finished_at timestamptz,
    instance_id text NOT NULL,
    who text NOT NULL,
    -- The process that began it, or went on with it last. No other one writes it down.
    holder uuid NOT NULL,
    dry_run boolean NOT NULL,
    -- Where it is; cursor is JSON.
    phase text NOT NULL DEFAULT '',
    cursor text,
    clerk bigint NOT NULL DEFAULT 0,
    in_step bigint NOT NULL DEFAULT 0,
    missing bigint NOT NULL DEFAULT 0,
    outdated bigint NOT NULL DEFAULT 0,
    different bigint NOT NULL DEFAULT 0,
    gone bigint NOT NULL DEFAULT 0,
    buried_alive bigint NOT NULL DEFAULT 0,
    repaired bigint NOT NULL DEFAULT 0,
    failed bigint NOT NULL DEFAULT 0,
    result text
        CONSTRAINT sync_runs_result_check CHECK (result IN ('done', 'failed', 'stopped', 'abandoned')),
    -- Why it ended so.
    detail text,
    updated_at timestamptz NOT NULL
);
CREATE INDEX sync_runs_started_at ON sync_runs (started_at, id);

-- The users that a run has seen in Clerk, so that those whom it did not see can be told.
CREATE TABLE sync_ids (
    run uuid NOT NULL,
    clerk_id text NOT NULL,
    -- What was published of the user and is not known to be applied yet.
    message_id text,
    -- When Clerk confirmed that it does not know the user.
    absent_at timestamptz,
    PRIMARY KEY (run, clerk_id)
);
-- With what is asked for, so that a planner prefers them to the primary key, which has all that the run has seen.
CREATE INDEX sync_ids_outstanding ON sync_ids (run, clerk_id, message_id) WHERE message_id IS NOT NULL;
CREATE INDEX sync_ids_absent ON sync_ids (run, clerk_id, absent_at) WHERE absent_at IS NOT NULL;
