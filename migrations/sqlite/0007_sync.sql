-- Clerk's API as a second source of news, beside its webhooks.

-- Clerk's whole user object as JSON text, of the row's version. Null where it is not kept.
ALTER TABLE users ADD COLUMN clerk TEXT;

-- Where a letter's message came from: webhook or api.
ALTER TABLE dead_letters ADD COLUMN origin TEXT NOT NULL DEFAULT 'webhook';

-- The instances of Clerk that were ever seen. One of them owns the table users.
CREATE TABLE instances (
    instance_id TEXT PRIMARY KEY NOT NULL,
    first_seen_at TEXT NOT NULL,
    first_seen_by TEXT NOT NULL
        CONSTRAINT instances_first_seen_by_check CHECK (first_seen_by IN ('webhook', 'sync', 'adopted')),
    owner INTEGER NOT NULL,
    last_webhook_at TEXT
);
CREATE UNIQUE INDEX instances_owner ON instances (owner) WHERE owner;

-- What one process of all does at a time. It is free once expires_at is over, by this machine's clock.
CREATE TABLE leases (
    name TEXT PRIMARY KEY NOT NULL,
    -- Null once it was given back; host and process still say who had it.
    holder TEXT,
    host TEXT NOT NULL,
    process TEXT NOT NULL,
    taken_at TEXT NOT NULL,
    expires_at TEXT NOT NULL,
    -- What the holder last said of its work; JSON text.
    state TEXT
);

-- Times are this machine's clock, but for finished_at, which comes with the run.
CREATE TABLE sync_runs (
    id TEXT PRIMARY KEY NOT NULL,
    started_at TEXT NOT NULL,
    finished_at TEXT,
    instance_id TEXT NOT NULL,
    who TEXT NOT NULL,
    -- The process that began it, or went on with it last. No other one writes it down.
    holder TEXT NOT NULL,
    dry_run INTEGER NOT NULL,
    -- Where it is; cursor is JSON.
    phase TEXT NOT NULL DEFAULT '',
    cursor TEXT,
    clerk INTEGER NOT NULL DEFAULT 0,
    in_step INTEGER NOT NULL DEFAULT 0,
    missing INTEGER NOT NULL DEFAULT 0,
    outdated INTEGER NOT NULL DEFAULT 0,
    different INTEGER NOT NULL DEFAULT 0,
    gone INTEGER NOT NULL DEFAULT 0,
    buried_alive INTEGER NOT NULL DEFAULT 0,
    repaired INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    result TEXT
        CONSTRAINT sync_runs_result_check CHECK (result IN ('done', 'failed', 'stopped', 'abandoned')),
    -- Why it ended so.
    detail TEXT,
    updated_at TEXT NOT NULL
);
CREATE INDEX sync_runs_started_at ON sync_runs (started_at, id);

-- The users that a run has seen in Clerk, so that those whom it did not see can be told.
CREATE TABLE sync_ids (
    run TEXT NOT NULL,
    clerk_id TEXT NOT NULL,
    -- What was published of the user and is not known to be applied yet.
    message_id TEXT,
    -- When Clerk confirmed that it does not know the user.
    absent_at TEXT,
    PRIMARY KEY (run, clerk_id)
) WITHOUT ROWID;
-- With what is asked for, so that a planner prefers them to the primary key, which has all that the run has seen.
CREATE INDEX sync_ids_outstanding ON sync_ids (run, clerk_id, message_id) WHERE message_id IS NOT NULL;
CREATE INDEX sync_ids_absent ON sync_ids (run, clerk_id, absent_at) WHERE absent_at IS NOT NULL;
