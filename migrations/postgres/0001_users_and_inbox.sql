-- One row per user. The columns up to clerk_updated_at mirror Clerk, but for subscription_tier and credits_balance,
-- which belong to the application: mirroring never overwrites them.
-- fillfactor leaves room on each page, so that an update that moves no index stays on it (a HOT update).
CREATE TABLE users (
    id uuid PRIMARY KEY,
    clerk_id text NOT NULL CONSTRAINT users_clerk_id_key UNIQUE,
    email text,
    clerk_email text,
    email_verified boolean NOT NULL DEFAULT false,
    phone text,
    username text,
    first_name text,
    last_name text,
    image_url text,
    external_id text,
    public_metadata jsonb,
    private_metadata jsonb,
    unsafe_metadata jsonb,
    banned boolean,
    locked boolean,
    subscription_tier text NOT NULL DEFAULT 'free',
    credits_balance bigint NOT NULL,
    last_sign_in_at timestamptz,
    clerk_created_at timestamptz,
    clerk_updated_at timestamptz,
    -- Of the mirror: Clerk's time in milliseconds, and what breaks ties, in this order.
    version bigint NOT NULL,
    version_sent bigint NOT NULL,
    version_kind smallint NOT NULL CONSTRAINT users_version_kind_check CHECK (version_kind IN (0, 1)),
    version_message_id text NOT NULL,
    -- clerk_email, case folded: what rows that claim the same address share.
    email_key text,
    erased boolean NOT NULL DEFAULT false,
    deleted_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 80);

-- Of the rows that claim an address only the best shows it in email, so this makes email unique, without regard to case.
CREATE UNIQUE INDEX users_email_key_shown ON users (email_key) WHERE email IS NOT NULL;
CREATE INDEX users_email_key ON users (email_key) WHERE email_key IS NOT NULL;

-- Every message that took effect, once: its row commits with its effect.
CREATE TABLE inbox (
    message_id text PRIMARY KEY,
    event_type text NOT NULL,
    clerk_id text,
    outcome text NOT NULL,
    event_at timestamptz,
    received_at timestamptz NOT NULL,
    processed_at timestamptz NOT NULL
);
CREATE INDEX inbox_clerk_id ON inbox (clerk_id, processed_at);
CREATE INDEX inbox_processed_at ON inbox (processed_at);

-- Clerk ids whose events are all stale from now on.
CREATE TABLE former_clerk_ids (
    clerk_id text PRIMARY KEY,
    user_id uuid,
    deleted_at timestamptz NOT NULL
);
CREATE INDEX former_clerk_ids_user_id ON former_clerk_ids (user_id);
