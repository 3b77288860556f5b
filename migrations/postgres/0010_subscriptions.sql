-- Items of subscriptions, from Clerk's billing events and from its API. With HEADCOUNT_BILLING=clerk they give users.subscription_tier.
CREATE TABLE subscription_items (
    -- Clerk's id: csubi_…
    id text PRIMARY KEY,
    -- csub_…; null while no event has told it.
    subscription_id text,
    -- Who pays: a user or an organization. May be here before its user is.
    clerk_id text NOT NULL,
    status text NOT NULL
        CONSTRAINT subscription_items_status_check CHECK (status IN
            ('active', 'past_due', 'canceled', 'upcoming', 'incomplete', 'abandoned', 'ended', 'expired')),
    -- Null while no event has told the plan.
    plan_slug text,
    -- Per month, in the smallest unit of the currency.
    amount bigint,
    currency text,
    -- The plan of whoever pays for none.
    is_default boolean NOT NULL,
    -- When it was told last whether it is, in Clerk's milliseconds.
    default_told_at bigint,
    -- month or annual
    period text,
    period_start timestamptz,
    -- Null: it does not end by itself.
    period_end timestamptz,
    canceled_at timestamptz,
    -- When it ceases to grant access though no event comes; null once users.subscription_tier follows that.
    lapses_at timestamptz,
    -- Of the newest mention: Clerk's time in milliseconds, and what breaks ties, in this order.
    version bigint NOT NULL,
    version_sent bigint NOT NULL,
    version_message_id text NOT NULL,
    -- Of the newest mention that told the plan.
    plan_version bigint,
    plan_version_sent bigint,
    plan_version_message_id text
);
CREATE INDEX subscription_items_clerk_id ON subscription_items (clerk_id, id);
CREATE INDEX subscription_items_lapses_at ON subscription_items (lapses_at) WHERE lapses_at IS NOT NULL;

-- Tiers that people granted. The one that has not ended outranks every event.
CREATE TABLE tier_grants (
    id uuid PRIMARY KEY,
    -- users.id
    user_id uuid NOT NULL,
    tier text NOT NULL,
    -- Null: for good.
    until timestamptz,
    note text,
    granted_by text NOT NULL,
    granted_at timestamptz NOT NULL,
    -- When it was revoked, replaced or over.
    ended_at timestamptz,
    -- Who revoked or replaced it, and why.
    ended_by text,
    ended_note text
);
CREATE UNIQUE INDEX tier_grants_current ON tier_grants (user_id) WHERE ended_at IS NULL;
CREATE INDEX tier_grants_user_id ON tier_grants (user_id, granted_at);
CREATE INDEX tier_grants_until ON tier_grants (until) WHERE ended_at IS NULL AND until IS NOT NULL;
