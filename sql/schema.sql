-- The ground every later migration stands on: which migrations ran, and how a table is closed
-- to other tenants. The schema itself exists already: the runner creates it.

CREATE TABLE haive.schema_migration (
    version integer PRIMARY KEY,
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);

-- The one table without a tenant. Who may write it is decided by grants alone.
ALTER TABLE haive.schema_migration ENABLE ROW LEVEL SECURITY;
ALTER TABLE haive.schema_migration FORCE ROW LEVEL SECURITY;
CREATE POLICY everyone ON haive.schema_migration USING (true) WITH CHECK (true);

-- Closes a table to every tenant but the current one, its owner included. No setting, no rows.
CREATE PROCEDURE haive.isolate_tenants(table_name text)
LANGUAGE plpgsql
SET search_path = pg_catalog
AS $$
BEGIN
    EXECUTE format('ALTER TABLE haive.%I ENABLE ROW LEVEL SECURITY', table_name);
    EXECUTE format('ALTER TABLE haive.%I FORCE ROW LEVEL SECURITY', table_name);
    EXECUTE format(
        'CREATE POLICY tenant_isolation ON haive.%I'
        ' USING (tenant_id = NULLIF(current_setting(''haive.tenant'', true), ''''))'
        ' WITH CHECK (tenant_id = NULLIF(current_setting(''haive.tenant'', true), ''''))',
        table_name
    );
END
$$;
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
-- LangGraph's store: one row per item. Vectors are not here: their width is the user's choice, so
-- `PostgresStore.setup()` makes a table per width (sql/queries/store.sql, create_vectors).

-- One item. Of a sealed tenant, labels and key are sealed names, and `value` is sealed in `payload`.
-- `namespace` is its labels, each followed by a dot: ('users', 'ann') is 'users.ann.';
-- labels have no dots, so everything at or under it is the text range ['users.ann.', 'users.ann/').
CREATE TABLE haive.store_item (
    created_at  timestamptz NOT NULL,
    updated_at  timestamptz NOT NULL,
    tenant_id   text COLLATE "C" NOT NULL,
    -- Not shown from then on; reads that ask for it set it to now + ttl_minutes again.
    expires_at  timestamptz,
    ttl_minutes double precision,
    namespace   text COLLATE "C" NOT NULL,
    key         text COLLATE "C" NOT NULL,
    -- What filters look at. It is also the value, unless one of the next three columns says otherwise.
    value       jsonb NOT NULL,
    -- The value as JSON text where jsonb would change it: NUL, NaN, infinities, -0.0, lone surrogates,
    -- floats of 1e16 and more. NULL for nearly every row.
    exact_json  bytea,
    -- The places of the keys, where they are not in jsonb's order.
    key_order   bytea,
    -- The sealed value.
    payload     bytea,
    PRIMARY KEY (tenant_id, namespace, key)
);

-- For the sweeper.
CREATE INDEX store_item_expiry_idx ON haive.store_item (tenant_id, expires_at) WHERE expires_at IS NOT NULL;

-- Sealed and compressed before it comes here.
ALTER TABLE haive.store_item ALTER COLUMN payload SET STORAGE EXTERNAL;

CALL haive.isolate_tenants('store_item');

-- True if items may be written as the writer means to: sealed under a data key that is stored, or in plaintext because
-- the tenant has none (see haive.accepts_plaintext). An error otherwise, so that nothing of a batch is committed.
CREATE FUNCTION haive.check_data_key(tenant text, number integer, key bytea) RETURNS boolean
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    IF number IS NOT NULL THEN
        IF NOT EXISTS (SELECT FROM haive.data_key
                       WHERE tenant_id = tenant AND key_no = number AND wrapped = key) THEN
            RAISE EXCEPTION 'the data key is not stored' USING ERRCODE = 'HK002';
        END IF;
        RETURN true;
    END IF;
    LOCK TABLE haive.data_key IN ROW SHARE MODE;
    IF EXISTS (SELECT FROM haive.data_key WHERE tenant_id = tenant) THEN
        RAISE EXCEPTION 'the tenant is sealed' USING ERRCODE = 'HK001';
    END IF;
    RETURN true;
END
$$;
GRANT EXECUTE ON FUNCTION haive.check_data_key TO PUBLIC;

-- Moves the vectors of items to the items' new names, in every table of vectors there is.
CREATE FUNCTION haive.rename_vectors(
    tenant text, namespaces text[], keys text[], new_namespaces text[], new_keys text[]
) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    vectors regclass;
BEGIN
    FOR vectors IN
        SELECT conrelid FROM pg_catalog.pg_constraint
        WHERE contype = 'f' AND confrelid = pg_typeof(NULL::haive.store_item)::text::regclass
    LOOP
        EXECUTE format(
            'UPDATE %s v SET namespace = k.new_namespace, key = k.new_key'
            ' FROM unnest($2, $3, $4, $5) AS k (namespace, key, new_namespace, new_key)'
            ' WHERE v.tenant_id = $1 AND v.namespace = k.namespace AND v.key = k.key',
            vectors
        ) USING tenant, namespaces, keys, new_namespaces, new_keys;
    END LOOP;
END
$$;
GRANT EXECUTE ON FUNCTION haive.rename_vectors TO PUBLIC;
-- Names inside a thread: branches and tags. docs/design/0006-versions.md says why.

-- A line of checkpoints, with the branch's name if it has one, or a tag. The line 0, on which a thread begins, has a row
-- only where it was protected.
CREATE TABLE haive.ref (
    thread_key      uuid NOT NULL,
    -- Of a line, its number: random, 0 for the first one. Of a tag, random.
    ref_no          bigint NOT NULL,
    -- BLAKE2b-64 of the name (keyed where the tenant seals). NULL once a branch was deleted, or its name means another line.
    name_key        bigint,
    -- The line on which the start was seen, and the one on which it is. Of a tag, the line it is on.
    base_line       bigint,
    home_line       bigint,
    -- What was merged where the line starts: the line, and with merge_id the checkpoint.
    merge_line      bigint,
    created_at      timestamptz NOT NULL DEFAULT now(),
    is_tag          boolean NOT NULL,
    is_protected    boolean NOT NULL DEFAULT false,
    -- Of a tag: it names nothing any more, and its name is not used again.
    is_deleted      boolean NOT NULL DEFAULT false,
    -- True if the line it starts from had gone on from there when it was made.
    is_passed       boolean NOT NULL DEFAULT false,
    tenant_id       text COLLATE "C" NOT NULL,
    -- The checkpoint at which the line starts, or that the tag names; as in checkpoint.
    checkpoint_id   bytea,
    -- Checkpoints of subgraphs are shown that are below this.
    cut_id          bytea,
    merge_id        bytea,
    -- The pending writes at the start that are shown.
    base_writes     bigint[],
    -- The name and the caller's metadata; of a sealed tenant, all of the columns above that say what it means, too.
    payload         bytea NOT NULL,
    PRIMARY KEY (thread_key, ref_no)
);
CREATE UNIQUE INDEX ref_name_idx ON haive.ref (thread_key, name_key) WHERE name_key IS NOT NULL;

-- What was done to the names of a thread.
CREATE TABLE haive.operation (
    thread_key   uuid NOT NULL,
    -- A UUID of version 6: the time, by the clock of who did it.
    operation_id uuid NOT NULL,
    at           timestamptz NOT NULL DEFAULT now(),
    tenant_id    text COLLATE "C" NOT NULL,
    -- What, who, why, before and after: versions/operations.py.
    payload      bytea NOT NULL,
    PRIMARY KEY (thread_key, operation_id)
);

ALTER TABLE haive.ref ALTER COLUMN payload SET STORAGE EXTERNAL;
ALTER TABLE haive.operation ALTER COLUMN payload SET STORAGE EXTERNAL;

CALL haive.isolate_tenants('ref');
CALL haive.isolate_tenants('operation');
