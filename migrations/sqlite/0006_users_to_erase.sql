-- Users that were deleted while HEADCOUNT_ON_DELETE was keep: what has to go once it is erase.
CREATE INDEX users_to_erase ON users (id) WHERE deleted_at IS NOT NULL AND NOT erased;
