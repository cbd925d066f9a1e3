-- What is kept of requests so that they can be decided again, by their tenants' record level. Apart from the books, so that
-- it can be deleted without them. `body` is JSON; it holds text only at level `text`.
CREATE TABLE recordings (
  entry TEXT PRIMARY KEY,
  tenant TEXT NOT NULL,
  level TEXT NOT NULL,
  body TEXT NOT NULL
) STRICT;
CREATE INDEX recordings_by_tenant ON recordings (tenant);
