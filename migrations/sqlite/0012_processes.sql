-- What each running process says of itself. A process that has said nothing for long is gone.
CREATE TABLE processes (
    -- Of this run of the process.
    id TEXT PRIMARY KEY NOT NULL,
    -- ingress, worker, api, console: those it has, with commas between. Rows of an ingress alone come through the queue.
    roles TEXT NOT NULL,
    version TEXT NOT NULL,
    host TEXT NOT NULL,
    pid INTEGER NOT NULL,
    -- By the process's own clock, as told_at: when it said this.
    started_at TEXT NOT NULL,
    told_at TEXT NOT NULL,
    -- By the database's clock.
    seen_at TEXT NOT NULL,
    -- It counts as gone from then on.
    expires_at TEXT NOT NULL,
    -- Messages that its worker has taken and not settled yet; null where it has none.
    held INTEGER,
    -- Why its worker takes no messages; null while it does.
    paused TEXT,
    paused_since TEXT,
    -- JSON: where it listens, by role.
    listeners TEXT NOT NULL,
    -- JSON: what it counted in each of the last 60 minutes, and in the last slots of 5 seconds.
    rates TEXT NOT NULL
);
