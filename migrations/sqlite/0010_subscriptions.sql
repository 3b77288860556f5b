-- Items of subscriptions, from Clerk's billing events and from its API. With HEADCOUNT_BILLING=clerk they give users.subscription_tier.
CREATE TABLE subscription_items (
    -- Clerk's id: csubi_…
    id TEXT PRIMARY KEY NOT NULL,
    -- csub_…; null while no event has told it.
    subscription_id TEXT,
    -- Who pays: a user or an organization. May be here before its user is.
    clerk_id TEXT NOT NULL,
    status TEXT NOT NULL
        CONSTRAINT subscription_items_status_check CHECK (status IN
            ('active', 'past_due', 'canceled', 'upcoming', 'incomplete', 'abandoned', 'ended', 'expired')),
    -- Null while no event has told the plan.
    plan_slug TEXT,
    -- Per month, in the smallest unit of the currency.
    amount INTEGER,
    currency TEXT,
    -- The plan of whoever pays for none.
    is_default INTEGER NOT NULL,
    -- When it was told last whether it is, in Clerk's milliseconds.
    default_told_at INTEGER,
    -- month or annual
    period TEXT,
    period_start TEXT,
    -- Null: it does not end by itself.
    period_end TEXT,
    canceled_at TEXT,
    -- When it ceases to grant access though no event comes; null once users.subscription_tier follows that.
    lapses_at TEXT,
    -- Of the newest mention: Clerk's time in milliseconds, and what breaks ties, in this order.
    version INTEGER NOT NULL,
    version_sent INTEGER NOT NULL,
    version_message_id TEXT NOT NULL,
    -- Of the newest mention that told the plan.
    plan_version INTEGER,
    plan_version_sent INTEGER,
    plan_version_message_id TEXT
);
CREATE INDEX subscription_items_clerk_id ON subscription_items (clerk_id, id);
CREATE INDEX subscription_items_lapses_at ON subscription_items (lapses_at) WHERE lapses_at IS NOT NULL;

-- Tiers that people granted. The one that has not ended outranks every event.
CREATE TABLE tier_grants (
    id TEXT PRIMARY KEY NOT NULL,
    -- users.id
    user_id TEXT NOT NULL,
    tier TEXT NOT NULL,
    -- Null: for good.
    until TEXT,
    note TEXT,
    granted_by TEXT NOT NULL,
    granted_at TEXT NOT NULL,
    -- When it was revoked, replaced or over.
    ended_at TEXT,
    -- Who revoked or replaced it, and why.
    ended_by TEXT,
    ended_note TEXT
);
CREATE UNIQUE INDEX tier_grants_current ON tier_grants (user_id) WHERE ended_at IS NULL;
CREATE INDEX tier_grants_user_id ON tier_grants (user_id, granted_at);
CREATE INDEX tier_grants_until ON tier_grants (until) WHERE ended_at IS NULL AND until IS NOT NULL;
