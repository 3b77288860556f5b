-- What retention believes the time to be: one row. A clock that leaps forward is followed by small steps only, because
-- what is past its retention is gone for good.
CREATE TABLE retention_clock (
    time TEXT NOT NULL,
    -- By the clock.
    written_at TEXT NOT NULL
);
INSERT INTO retention_clock VALUES (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), strftime('%Y-%m-%dT%H:%M:%fZ', 'now'));
