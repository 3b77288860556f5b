-- Visitors who have not signed in, and the users who claimed them. The application keys its anonymous data by the id.
CREATE TABLE anonymous_visitors (
    id TEXT PRIMARY KEY NOT NULL,
    -- SHA-256 of the visitor's token, in hexadecimal digits. The token itself is nowhere.
    token_hash TEXT NOT NULL UNIQUE,
    created_at TEXT NOT NULL,
    -- Nobody can claim it from then on.
    expires_at TEXT NOT NULL,
    -- users.id; set once.
    claimed_by TEXT,
    claimed_at TEXT
);
CREATE INDEX anonymous_visitors_claimed_by ON anonymous_visitors (claimed_by) WHERE claimed_by IS NOT NULL;
CREATE INDEX anonymous_visitors_unclaimed ON anonymous_visitors (expires_at) WHERE claimed_by IS NULL;
