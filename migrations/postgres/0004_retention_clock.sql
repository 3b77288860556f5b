-- What retention believes the time to be: one row. A clock that leaps forward is followed by small steps only, because
-- what is past its retention is gone for good.
CREATE TABLE retention_clock (
    time timestamptz NOT NULL,
    -- By the clock.
    written_at timestamptz NOT NULL
);
INSERT INTO retention_clock VALUES (now(), now());
