-- Visitors who have not signed in, and the users who claimed them. The application keys its anonymous data by the id.
CREATE TABLE anonymous_visitors (
    id text PRIMARY KEY,
    -- SHA-256 of the visitor's token, in hexadecimal digits. The token itself is nowhere.
    token_hash text NOT NULL CONSTRAINT anonymous_visitors_token_hash_key UNIQUE,
    created_at timestamptz NOT NULL,
    -- Nobody can claim it from then on.
    expires_at timestamptz NOT NULL,
    -- users.id; set once.
    claimed_by uuid,
    claimed_at timestamptz
);
CREATE INDEX anonymous_visitors_claimed_by ON anonymous_visitors (claimed_by) WHERE claimed_by IS NOT NULL;
CREATE INDEX anonymous_visitors_unclaimed ON anonymous_visitors (expires_at) WHERE claimed_by IS NULL;
