-- Threads, their logs of pieces, checkpoints and pending writes. docs/design/0001-storage-format.md says why.

CREATE TABLE haive.thread (
    thread_key uuid NOT NULL PRIMARY KEY,
    epoch bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    tenant_id text COLLATE "C" NOT NULL,
    thread_id text COLLATE "C" NOT NULL
);
CREATE INDEX thread_tenant_idx ON haive.thread (tenant_id, created_at, thread_key);

-- Which life of the database, and of a row, this is. After a crash, a failover to a replica or a restored backup the last
-- commits that running processes know of may be gone: then it is another one, and what they remember of a thread counts
-- no more. The parts: the timeline, the database and the file of the table, when the server was started and when it began
-- its statistics, which a crash makes it do anew; and the transaction that wrote the row, for rows that were put back.
CREATE FUNCTION haive.incarnation(stored_in regclass, written_by xid) RETURNS bigint
LANGUAGE sql STABLE PARALLEL SAFE
RETURN hashtextextended(
    concat(
        CASE WHEN NOT pg_is_in_recovery() THEN left(pg_walfile_name(pg_current_wal_lsn()), 8) END,
        ' ', pg_relation_filepath(stored_in),
        ' ', extract(epoch FROM pg_postmaster_start_time()),
        ' ', extract(epoch FROM pg_stat_get_bgwriter_stat_reset_time()),
        ' ', written_by
    ),
    0
);

-- Servers that keep their log elsewhere do not tell of it.
DO $$
BEGIN
    PERFORM haive.incarnation('pg_class', '3');
EXCEPTION WHEN OTHERS THEN
    CREATE OR REPLACE FUNCTION haive.incarnation(stored_in regclass, written_by xid) RETURNS bigint
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN hashtextextended(
        concat(
            pg_relation_filepath(stored_in),
            ' ', extract(epoch FROM pg_postmaster_start_time()),
            ' ', extract(epoch FROM pg_stat_get_bgwriter_stat_reset_time()),
            ' ', written_by
        ),
        0
    );
END
$$;
-- Whoever may use the tables needs it, also where new functions are nobody's by default.
GRANT EXECUTE ON FUNCTION haive.incarnation TO PUBLIC;

CREATE TABLE haive.piece (
    thread_key uuid NOT NULL,
    no bigint NOT NULL,
    tenant_id text COLLATE "C" NOT NULL,
    payload bytea NOT NULL,
    PRIMARY KEY (thread_key, no)
);

CREATE TABLE haive.checkpoint (
    thread_key uuid NOT NULL,
    ns_key bigint NOT NULL,
    run_key bigint,
    checkpoint_id bytea NOT NULL,
    parent_id bytea,
    tenant_id text COLLATE "C" NOT NULL,
    frozen bigint[],
    labels jsonb,
    head bytea NOT NULL,
    PRIMARY KEY (thread_key, ns_key, checkpoint_id)
);
CREATE INDEX checkpoint_run_idx ON haive.checkpoint (run_key) WHERE run_key IS NOT NULL;

CREATE TABLE haive.pending_write (
    thread_key uuid NOT NULL,
    ns_key bigint NOT NULL,
    no bigint NOT NULL,
    checkpoint_id bytea NOT NULL,
    tenant_id text COLLATE "C" NOT NULL,
    frozen bigint[],
    payload bytea NOT NULL,
    PRIMARY KEY (thread_key, checkpoint_id, no)
);

CREATE TABLE haive.data_key (
    tenant_id text COLLATE "C" NOT NULL,
    no integer NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    wrapped bytea NOT NULL,
    PRIMARY KEY (tenant_id, no)
);

-- Payloads are compressed (and sealed) before they come here: a second attempt would only cost time.
ALTER TABLE haive.piece ALTER COLUMN payload SET STORAGE EXTERNAL;
ALTER TABLE haive.checkpoint ALTER COLUMN head SET STORAGE EXTERNAL;
ALTER TABLE haive.pending_write ALTER COLUMN payload SET STORAGE EXTERNAL;

-- Payloads of 2 to 4 kB stay in their row: apart they would take a tenth more, and a second look-up.
ALTER TABLE haive.piece SET (toast_tuple_target = 4080);

CALL haive.isolate_tenants('thread');
CALL haive.isolate_tenants('piece');
CALL haive.isolate_tenants('checkpoint');
CALL haive.isolate_tenants('pending_write');
CALL haive.isolate_tenants('data_key');
