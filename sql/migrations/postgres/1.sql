-- What larder keeps in a database. No other table is touched, and no type is made.

CREATE TABLE larder_schema (
    version int NOT NULL
);

-- The running versions of the code. Renewed every few seconds, in place: no index has what a renewal changes.
CREATE TABLE larder_generation (
    id text PRIMARY KEY,
    version text NOT NULL,
    pool text NOT NULL,
    holder text NOT NULL,
    manifest text NOT NULL,
    created_at timestamptz NOT NULL,
    renewed_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL
) WITH (fillfactor = 50);

-- Flushes that aren't known to be delivered. A queue: almost every row that was ever in it is dead, so it is vacuumed
-- by their number, and not by their share.
CREATE TABLE larder_outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- Holds the generation while the transaction of the writer is open, and stops a writer whose generation is gone.
    generation text REFERENCES larder_generation ON DELETE SET NULL,
    created_at timestamptz NOT NULL,
    next_at timestamptz NOT NULL,
    attempts int NOT NULL DEFAULT 0,
    text text NOT NULL
) WITH (
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 10000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 5000,
    autovacuum_vacuum_cost_delay = 0,
    toast.autovacuum_vacuum_scale_factor = 0,
    toast.autovacuum_vacuum_threshold = 1000
);

CREATE INDEX larder_outbox_next_at ON larder_outbox (next_at);

-- When rows were last claimed, by anybody. One row.
CREATE TABLE larder_relay (
    id int PRIMARY KEY CHECK (id = 1),
    claimed_at timestamptz NOT NULL
);

-- Accessors whose entries were given up.
CREATE TABLE larder_purge (
    accessor text PRIMARY KEY,
    epoch text NOT NULL,
    former text,
    purged_at timestamptz NOT NULL
);

INSERT INTO larder_relay VALUES (1, 'epoch');
INSERT INTO larder_schema VALUES (1);
