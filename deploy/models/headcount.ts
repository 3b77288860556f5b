// headcount's tables for Drizzle. headcount makes and migrates them: read them here, and write only subscription_tier and
// credits_balance. Columns that only headcount needs are left out.
import { bigint, boolean, jsonb, pgTable, text, timestamp, uuid } from "drizzle-orm/pg-core"

export const users = pgTable("users", {
  id: uuid("id").primaryKey(),
  clerkId: text("clerk_id").notNull().unique(),
  email: text("email"),
  clerkEmail: text("clerk_email"),
  emailVerified: boolean("email_verified").notNull(),
  phone: text("phone"),
  username: text("username"),
  firstName: text("first_name"),
  lastName: text("last_name"),
  imageUrl: text("image_url"),
  externalId: text("external_id"),
  publicMetadata: jsonb("public_metadata"),
  privateMetadata: jsonb("private_metadata"),
  unsafeMetadata: jsonb("unsafe_metadata"),
  banned: boolean("banned"),
  locked: boolean("locked"),
  subscriptionTier: text("subscription_tier").notNull(),
  creditsBalance: bigint("credits_balance", { mode: "number" }).notNull(),
  lastSignInAt: timestamp("last_sign_in_at", { withTimezone: true }),
  clerkCreatedAt: timestamp("clerk_created_at", { withTimezone: true }),
  clerkUpdatedAt: timestamp("clerk_updated_at", { withTimezone: true }),
  version: bigint("version", { mode: "number" }).notNull(),
  deletedAt: timestamp("deleted_at", { withTimezone: true }),
  createdAt: timestamp("created_at", { withTimezone: true }).notNull(),
  updatedAt: timestamp("updated_at", { withTimezone: true }).notNull(),
  clerk: jsonb("clerk"),
})

export const sessions = pgTable("sessions", {
  id: text("id").primaryKey(),
  clerkId: text("clerk_id").notNull(),
  userId: uuid("user_id"),
  status: text("status").notNull(),
  createdAt: timestamp("created_at", { withTimezone: true }).notNull(),
  lastSeenAt: timestamp("last_seen_at", { withTimezone: true }).notNull(),
  endedAt: timestamp("ended_at", { withTimezone: true }),
  act: jsonb("act"),
})

export const anonymousVisitors = pgTable("anonymous_visitors", {
  id: text("id").primaryKey(),
  createdAt: timestamp("created_at", { withTimezone: true }).notNull(),
  expiresAt: timestamp("expires_at", { withTimezone: true }).notNull(),
  claimedBy: uuid("claimed_by"),
  claimedAt: timestamp("claimed_at", { withTimezone: true }),
})

export const subscriptionItems = pgTable("subscription_items", {
  id: text("id").primaryKey(),
  subscriptionId: text("subscription_id"),
  clerkId: text("clerk_id").notNull(),
  status: text("status").notNull(),
  planSlug: text("plan_slug"),
  amount: bigint("amount", { mode: "number" }),
  currency: text("currency"),
  period: text("period"),
  periodStart: timestamp("period_start", { withTimezone: true }),
  periodEnd: timestamp("period_end", { withTimezone: true }),
  canceledAt: timestamp("canceled_at", { withTimezone: true }),
  version: bigint("version", { mode: "number" }).notNull(),
})

export const tierGrants = pgTable("tier_grants", {
  id: uuid("id").primaryKey(),
  userId: uuid("user_id").notNull(),
  tier: text("tier").notNull(),
  until: timestamp("until", { withTimezone: true }),
  note: text("note"),
  grantedBy: text("granted_by").notNull(),
  grantedAt: timestamp("granted_at", { withTimezone: true }).notNull(),
  endedAt: timestamp("ended_at", { withTimezone: true }),
  endedBy: text("ended_by"),
  endedNote: text("ended_note"),
})
