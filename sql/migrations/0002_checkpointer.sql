-- Threads, their logs of pieces, checkpoints and pending writes. docs/design/0001-storage-format.md says why.

-- One conversation. Its row is what writers, prune, delete and copy lock.
CREATE TABLE haive.thread (
    -- BLAKE2b-128 of tenant and thread id.
    thread_key uuid NOT NULL PRIMARY KEY,
    -- Random; another one after each prune, deletion of runs and re-creation: what processes remember is then stale.
    epoch      bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    -- The line that `main` means; NULL is the line 0, on which a thread begins.
    main_line  bigint,
    tenant_id  text COLLATE "C" NOT NULL,
    thread_id  text COLLATE "C" NOT NULL
);

-- The server's timeline, which a failover or a restore changes. NULL on a standby.
CREATE FUNCTION haive.timeline() RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
RETURN CASE WHEN NOT pg_is_in_recovery() THEN left(pg_walfile_name(pg_current_wal_lsn()), 8) END;

-- Servers that keep their log elsewhere do not tell of it.
DO $$
BEGIN
    PERFORM haive.timeline();
EXCEPTION WHEN OTHERS THEN
    CREATE OR REPLACE FUNCTION haive.timeline() RETURNS text LANGUAGE sql STABLE PARALLEL SAFE RETURN NULL::text;
END
$$;

-- Fingerprint that changes whenever acknowledged commits may have been lost: after a crash, a failover to a replica that was
-- behind, or a restored backup. What processes remember of a thread then counts no more. The parts: the timeline, the database and
-- the file of the table, when the server was started and when it began its statistics (a crash makes it begin again); and the
-- transaction that wrote the row, for rows that were put back.
CREATE FUNCTION haive.incarnation(stored_in regclass, written_by xid) RETURNS bigint
LANGUAGE sql STABLE PARALLEL SAFE
RETURN hashtextextended(
    concat(
        haive.timeline(),
        ' ', pg_relation_filepath(stored_in),
        ' ', extract(epoch FROM pg_postmaster_start_time()),
        ' ', extract(epoch FROM pg_stat_get_bgwriter_stat_reset_time()),
        ' ', written_by
    ),
    0
);
-- Whoever may use the tables needs them, also where new functions are granted to no role by default.
GRANT EXECUTE ON FUNCTION haive.timeline, haive.incarnation TO PUBLIC;

-- An immutable part of a thread's values.
CREATE TABLE haive.piece (
    thread_key uuid NOT NULL,
    -- From a number block of the process that wrote it: 43 random bits, then 20 that count.
    piece_no   bigint NOT NULL,
    tenant_id  text COLLATE "C" NOT NULL,
    -- Serialised, compressed and, with a key, sealed to this row.
    payload    bytea NOT NULL,
    PRIMARY KEY (thread_key, piece_no)
);

-- One checkpoint. The key begins with the namespace because its latest checkpoint is asked for. Keys of a thread come in
-- order, so pages of indexes are filled up; those of pieces do not, and would be split when they are full.
CREATE TABLE haive.checkpoint (
    thread_key    uuid NOT NULL,
    -- BLAKE2b-64 of the namespace, XOR the line.
    ns_key        bigint NOT NULL,
    -- NULL on the line 0, where a thread begins.
    line_no       bigint,
    -- Of a parent on another line; NULL if it is ns_key.
    parent_ns_key bigint,
    -- BLAKE2b-64 of metadata's run_id (keyed where the tenant seals), for delete_for_runs.
    run_key       bigint,
    -- 3 bytes of the tenant's BLAKE2b, then 5 of checkpoint_id (of a UUID of version 6, a tenth of a second).
    listing_key   bigint NOT NULL,
    -- Bits that the scalars of the metadata set, by a hash (keyed where the tenant seals): see metadata.py. NULL without
    -- any but source and step; the second one is set only where there are many.
    signature_1   bigint,
    signature_2   bigint,
    -- 16 bytes for a UUID, 0xff and the text for other ids: sorts as the ids do.
    checkpoint_id bytea NOT NULL,
    parent_id     bytea,
    tenant_id     text COLLATE "C" NOT NULL,
    -- The sequence pieces the body names, so that one statement fetches them with it.
    sequence_nos  bigint[],
    -- Versions, metadata and a manifest per channel: storage/row_format.py.
    body          bytea NOT NULL,
    PRIMARY KEY (thread_key, ns_key, checkpoint_id) WITH (fillfactor = 100)
);
-- A tenant's newest. Equal keys share an entry: 6 to 20 bytes per checkpoint, where whole ids would take 50.
CREATE INDEX checkpoint_listing_idx ON haive.checkpoint (listing_key) WITH (fillfactor = 100);
CREATE INDEX checkpoint_run_idx ON haive.checkpoint (run_key) WHERE run_key IS NOT NULL;

-- One put_writes call. Checkpoint ids come in order of time, namespace hashes do not: so the key begins with the id.
CREATE TABLE haive.pending_write (
    thread_key    uuid NOT NULL,
    ns_key        bigint NOT NULL,
    -- A number of the same blocks as the pieces'.
    write_no      bigint NOT NULL,
    checkpoint_id bytea NOT NULL,
    tenant_id     text COLLATE "C" NOT NULL,
    -- As in checkpoint.
    sequence_nos  bigint[],
    -- Task, path and a manifest per channel: storage/row_format.py.
    payload       bytea NOT NULL,
    PRIMARY KEY (thread_key, checkpoint_id, write_no) WITH (fillfactor = 100)
);

-- What seals a tenant's data. Rotating the master key wraps the same data keys again.
CREATE TABLE haive.data_key (
    tenant_id  text COLLATE "C" NOT NULL,
    -- 1, 2, …; sealed payloads carry it.
    key_no     integer NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    -- The data key under the master key.
    wrapped    bytea NOT NULL,
    -- Of the first key: the transaction before which the tenant's plaintext was written, sealed under the key.
    plaintext_before bytea,
    -- True while the tenant may have threads, or store items, that were written before it had a key.
    plaintext_threads boolean NOT NULL DEFAULT false,
    plaintext_items boolean NOT NULL DEFAULT false,
    PRIMARY KEY (tenant_id, key_no)
);

-- True while the tenant has no data key. Statements that make rows in plaintext ask, so that a process without the
-- key cannot add to a sealed tenant. The lock, which whoever makes a tenant's first key takes exclusively, is held until
-- commit; a volatile function sees what was committed while it waited, which the statement itself would not. It is the
-- table's because only who may write the table can hold it: any login can hold an advisory lock.
CREATE FUNCTION haive.accepts_plaintext(tenant text) RETURNS boolean
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    LOCK TABLE haive.data_key IN ROW SHARE MODE;
    RETURN NOT EXISTS (SELECT FROM haive.data_key WHERE tenant_id = tenant);
END
$$;
GRANT EXECUTE ON FUNCTION haive.accepts_plaintext TO PUBLIC;

-- The server that counts the transactions; 0 where it does not tell.
CREATE FUNCTION haive.cluster_id() RETURNS bigint
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN (SELECT system_identifier FROM pg_catalog.pg_control_system());
EXCEPTION WHEN insufficient_privilege THEN
    RETURN 0;
END
$$;
GRANT EXECUTE ON FUNCTION haive.cluster_id TO PUBLIC;

-- True if a row was written before a transaction. A client cannot give a row the number of an older transaction, so a
-- plaintext row that is forged after a tenant's first key was made is distinguished from one that was there. Row versions say
-- 32 bits of the number: after 2^31 more transactions nothing counts as written before.
CREATE FUNCTION haive.written_before(row_xmin xid, moment bigint) RETURNS boolean
LANGUAGE sql STABLE
RETURN pg_snapshot_xmax(pg_current_snapshot())::text::bigint - moment BETWEEN 0 AND 2147483647
    AND ((row_xmin::text::bigint - moment) & 4294967295)
        > pg_snapshot_xmax(pg_current_snapshot())::text::bigint - moment;
GRANT EXECUTE ON FUNCTION haive.written_before TO PUBLIC;

-- Payloads are compressed (and sealed) before they come here: a second attempt would only cost time.
ALTER TABLE haive.piece ALTER COLUMN payload SET STORAGE EXTERNAL;
ALTER TABLE haive.checkpoint ALTER COLUMN body SET STORAGE EXTERNAL;
ALTER TABLE haive.pending_write ALTER COLUMN payload SET STORAGE EXTERNAL;

-- Payloads of 2 to 4 kB stay in their row: apart they would take a tenth more, and a second look-up.
ALTER TABLE haive.piece SET (toast_tuple_target = 4080);

CALL haive.isolate_tenants('thread');
CALL haive.isolate_tenants('piece');
CALL haive.isolate_tenants('checkpoint');
CALL haive.isolate_tenants('pending_write');
CALL haive.isolate_tenants('data_key');
