-- LangGraph's store: one row per item. Vectors are not here: their width is the user's choice, so
-- `PostgresStore.setup()` makes a table per width (sql/queries/store.sql, create_vectors).

-- One item. `namespace` is its labels, each followed by a dot: ('users', 'ann') is 'users.ann.';
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
    -- What filters look at. It is also the value, unless `exact` says otherwise.
    value       jsonb NOT NULL,
    -- The value as JSON text where jsonb would change it: NUL, NaN, infinities, -0.0, lone surrogates,
    -- floats of 1e16 and more. NULL for nearly every row.
    exact       bytea,
    PRIMARY KEY (tenant_id, namespace, key)
);

-- For the sweeper.
CREATE INDEX store_item_expiry_idx ON haive.store_item (tenant_id, expires_at) WHERE expires_at IS NOT NULL;

CALL haive.isolate_tenants('store_item');
