-- Sessions of users, from webhooks and from the session tokens that the application's API saw.
CREATE TABLE sessions (
    -- Clerk's id: sid in its tokens.
    id text PRIMARY KEY,
    clerk_id text NOT NULL,
    -- users.id; null while the user has no row.
    user_id uuid,
    status text NOT NULL
        CONSTRAINT sessions_status_check CHECK (status IN ('active', 'pending', 'ended', 'removed', 'revoked')),
    created_at timestamptz NOT NULL,
    last_seen_at timestamptz NOT NULL,
    -- Of the earliest end, which also gives the status.
    ended_at timestamptz,
    -- Who acted in the user's place: the claim act of a token.
    act jsonb,
    -- What its own events say, and apart from that the deletion of its user.
    own_status text NOT NULL,
    own_ended_at timestamptz,
    user_deleted_at timestamptz,
    -- Of the newest event or token: Clerk's time in milliseconds, and what breaks ties, in this order.
    version bigint NOT NULL,
    version_sent bigint NOT NULL,
    version_message_id text NOT NULL
);
CREATE INDEX sessions_clerk_id ON sessions (clerk_id);
CREATE INDEX sessions_user_id ON sessions (user_id);
CREATE INDEX sessions_ended_at ON sessions (ended_at) WHERE ended_at IS NOT NULL;
