-- One row per user. The columns up to clerk_updated_at mirror Clerk, but for subscription_tier and credits_balance,
-- which belong to the application: mirroring never overwrites them.
-- Ids are text, metadata is JSON text, times are RFC 3339 in UTC with milliseconds: 2026-01-02T03:04:05.678Z.
CREATE TABLE users (
    id TEXT PRIMARY KEY NOT NULL,
    clerk_id TEXT NOT NULL UNIQUE,
    email TEXT,
    clerk_email TEXT,
    email_verified INTEGER NOT NULL DEFAULT 0,
    phone TEXT,
    username TEXT,
    first_name TEXT,
    last_name TEXT,
    image_url TEXT,
    external_id TEXT,
    public_metadata TEXT,
    private_metadata TEXT,
    unsafe_metadata TEXT,
    banned INTEGER,
    locked INTEGER,
    subscription_tier TEXT NOT NULL DEFAULT 'free',
    credits_balance INTEGER NOT NULL,
    last_sign_in_at TEXT,
    clerk_created_at TEXT,
    clerk_updated_at TEXT,
    -- Of the mirror: Clerk's time in milliseconds, and what breaks ties, in this order.
    version INTEGER NOT NULL,
    version_sent INTEGER NOT NULL,
    version_kind INTEGER NOT NULL CONSTRAINT users_version_kind_check CHECK (version_kind IN (0, 1)),
    version_message_id TEXT NOT NULL,
    -- clerk_email, case folded: what rows that claim the same address share.
    email_key TEXT,
    erased INTEGER NOT NULL DEFAULT 0,
    deleted_at TEXT,
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    updated_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
);

-- Of the rows that claim an address only the best shows it in email, so this makes email unique, without regard to case.
CREATE UNIQUE INDEX users_email_key_shown ON users (email_key) WHERE email IS NOT NULL;
CREATE INDEX users_email_key ON users (email_key) WHERE email_key IS NOT NULL;

-- Every message that took effect, once: its row commits with its effect.
CREATE TABLE inbox (
    message_id TEXT PRIMARY KEY NOT NULL,
    event_type TEXT NOT NULL,
    clerk_id TEXT,
    outcome TEXT NOT NULL,
    event_at TEXT,
    received_at TEXT NOT NULL,
    processed_at TEXT NOT NULL
);
CREATE INDEX inbox_clerk_id ON inbox (clerk_id, processed_at);
CREATE INDEX inbox_processed_at ON inbox (processed_at);

-- Clerk ids whose events are all stale from now on.
CREATE TABLE former_clerk_ids (
    clerk_id TEXT PRIMARY KEY NOT NULL,
    user_id TEXT,
    deleted_at TEXT NOT NULL
);
CREATE INDEX former_clerk_ids_user_id ON former_clerk_ids (user_id);
