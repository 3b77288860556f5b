-- What became of a letter's message, as the inbox has it: the inbox forgets sooner than the letters. Null before, and for
-- what an older headcount has settled.
ALTER TABLE dead_letters ADD COLUMN outcome text;
