-- What each running process says of itself. A process that has said nothing for long is gone.
CREATE TABLE processes (
    -- Of this run of the process.
    id uuid PRIMARY KEY,
    -- ingress, worker, api, console: those it has, with commas between. Rows of an ingress alone come through the queue.
    roles text NOT NULL,
    version text NOT NULL,
    host text NOT NULL,
    pid bigint NOT NULL,
    -- By the process's own clock, as told_at: when it said this.
    started_at timestamptz NOT NULL,
    told_at timestamptz NOT NULL,
    -- By the database's clock.
    seen_at timestamptz NOT NULL,
    -- It counts as gone from then on.
    expires_at timestamptz NOT NULL,
    -- Messages that its worker has taken and not settled yet; null where it has none.
    held bigint,
    -- Why its worker takes no messages; null while it does.
    paused text,
    paused_since timestamptz,
    -- JSON: where it listens, by role.
    listeners text NOT NULL,
    -- JSON: what it counted in each of the last 60 minutes, and in the last slots of 5 seconds.
    rates text NOT NULL
);
