-- What larder keeps in a database. No other table is touched. Times are milliseconds since 1970.

CREATE TABLE larder_schema (
    version INTEGER NOT NULL
) STRICT;

-- The running versions of the code.
CREATE TABLE larder_generation (
    id TEXT NOT NULL PRIMARY KEY,
    version TEXT NOT NULL,
    pool TEXT NOT NULL,
    holder TEXT NOT NULL,
    manifest TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    renewed_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;

-- Flushes that aren't known to be delivered. An id is never used again: whoever deletes a row late mustn't delete
-- another one.
CREATE TABLE larder_outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    generation TEXT REFERENCES larder_generation ON DELETE SET NULL,
    created_at INTEGER NOT NULL,
    next_at INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    text TEXT NOT NULL
) STRICT;

CREATE INDEX larder_outbox_next_at ON larder_outbox (next_at);

-- When rows were last claimed, by anybody. One row.
CREATE TABLE larder_relay (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    claimed_at INTEGER NOT NULL
) STRICT;

-- Accessors whose entries were given up.
CREATE TABLE larder_purge (
    accessor TEXT NOT NULL PRIMARY KEY,
    epoch TEXT NOT NULL,
    former TEXT,
    purged_at INTEGER NOT NULL
) STRICT;

INSERT INTO larder_relay VALUES (1, 0);
INSERT INTO larder_schema VALUES (1);
