-- Sessions of users, from webhooks and from the session tokens that the application's API saw.
CREATE TABLE sessions (
    -- Clerk's id: sid in its tokens.
    id TEXT PRIMARY KEY NOT NULL,
    clerk_id TEXT NOT NULL,
    -- users.id; null while the user has no row.
    user_id TEXT,
    status TEXT NOT NULL
        CONSTRAINT sessions_status_check CHECK (status IN ('active', 'pending', 'ended', 'removed', 'revoked')),
    created_at TEXT NOT NULL,
    last_seen_at TEXT NOT NULL,
    -- Of the earliest end, which also gives the status.
    ended_at TEXT,
    -- Who acted in the user's place: the claim act of a token; JSON text.
    act TEXT,
    -- What its own events say, and apart from that the deletion of its user.
    own_status TEXT NOT NULL,
    own_ended_at TEXT,
    user_deleted_at TEXT,
    -- Of the newest event or token: Clerk's time in milliseconds, and what breaks ties, in this order.
    version INTEGER NOT NULL,
    version_sent INTEGER NOT NULL,
    version_message_id TEXT NOT NULL
);
CREATE INDEX sessions_clerk_id ON sessions (clerk_id);
CREATE INDEX sessions_user_id ON sessions (user_id);
CREATE INDEX sessions_ended_at ON sessions (ended_at) WHERE ended_at IS NOT NULL;
