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
