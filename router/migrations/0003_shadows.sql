-- Shadow runs: attempts and entries that served nobody. `shadow_of` is the entry that was served; `shadow_policy` the policy
-- on whose shadow budget an attempt drew.
ALTER TABLE attempts ADD COLUMN shadow_of TEXT;
ALTER TABLE attempts ADD COLUMN shadow_policy TEXT;
ALTER TABLE entries ADD COLUMN shadow_of TEXT;

-- What comparing two answers to one request came to. Apart from the books, and deleted with the recordings; holds no text.
CREATE TABLE outcomes (
  entry TEXT NOT NULL,
  small TEXT NOT NULL,
  large TEXT NOT NULL,
  tenant TEXT NOT NULL,
  at_ms INTEGER NOT NULL,
  body TEXT NOT NULL,
  PRIMARY KEY (entry, small, large)
) STRICT;
CREATE INDEX outcomes_by_tenant ON outcomes (tenant);
CREATE INDEX outcomes_by_time ON outcomes (at_ms);
