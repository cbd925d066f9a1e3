-- Money in nano-USD, time in milliseconds since 1970-01-01 UTC, words as in the domain.

-- One row a request, written when it is finished. `body` is the whole record as JSON; NULL for interrupted requests.
CREATE TABLE entries (
  id TEXT PRIMARY KEY,
  tenant TEXT NOT NULL,
  received_ms INTEGER NOT NULL,
  latency_ms REAL NOT NULL,
  status TEXT NOT NULL,
  route TEXT NOT NULL,
  model TEXT NOT NULL,
  policy TEXT NOT NULL,
  cost INTEGER NOT NULL,
  basis TEXT NOT NULL,
  baseline INTEGER NOT NULL,
  input INTEGER NOT NULL,
  output INTEGER NOT NULL,
  cached INTEGER NOT NULL,
  reasoning INTEGER NOT NULL,
  cpu_seconds REAL NOT NULL,
  error TEXT NOT NULL,
  labels TEXT NOT NULL,
  body TEXT
) STRICT;
CREATE INDEX entries_by_time ON entries (received_ms, id);
CREATE INDEX entries_by_tenant ON entries (tenant, received_ms);

-- One row a call to a backend: made before the call, `status` NULL until it ended.
CREATE TABLE attempts (
  id TEXT PRIMARY KEY,
  request TEXT NOT NULL,
  tenant TEXT NOT NULL,
  model TEXT NOT NULL,
  route TEXT NOT NULL,
  number INTEGER NOT NULL,
  started_ms INTEGER NOT NULL,
  hold INTEGER NOT NULL,
  ended_ms INTEGER,
  status TEXT,
  cost INTEGER NOT NULL DEFAULT 0,
  basis TEXT NOT NULL DEFAULT 'reported',
  input INTEGER NOT NULL DEFAULT 0,
  output INTEGER NOT NULL DEFAULT 0,
  cached INTEGER NOT NULL DEFAULT 0,
  reasoning INTEGER NOT NULL DEFAULT 0,
  cpu_seconds REAL NOT NULL DEFAULT 0,
  latency_ms REAL NOT NULL DEFAULT 0,
  error TEXT NOT NULL DEFAULT '',
  overrun INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX attempts_by_request ON attempts (request);
CREATE INDEX attempts_by_time ON attempts (started_ms);
CREATE INDEX attempts_unfinished ON attempts (id) WHERE status IS NULL;

CREATE TABLE feedback (
  entry TEXT NOT NULL,
  source TEXT NOT NULL,
  value REAL NOT NULL,
  at_ms INTEGER NOT NULL,
  PRIMARY KEY (entry, source)
) STRICT;

-- How much of the journal stands in the tables above; written in the same transaction.
CREATE TABLE journal_taken (
  id INTEGER PRIMARY KEY CHECK (id = 1),
  segment INTEGER NOT NULL,
  position INTEGER NOT NULL
) STRICT;
