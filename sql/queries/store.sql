-- Queries of the store. Where a statement says /* filters */, conditions of `where_…` below are
-- added, each with its own parameters. `haive.store_vector`, `pgvector.vector` and `pgvector.<=>`
-- stand for the table, the type and the distance operator that the store's index asks for.
--
-- The tenant is bound although the policy adds it too: Citus routes by it, and Postgres turns the
-- pair into one comparison made once.

-- name: get_items
-- The live items among those wanted; `no` is their place in the question.
-- A read never waits: a row that someone else holds is being refreshed or rewritten anyway.
WITH wanted AS MATERIALIZED (
    SELECT * FROM unnest(%(namespaces)s::text[], %(keys)s::text[], %(refreshes)s::boolean[])
        WITH ORDINALITY AS w (namespace, key, refresh, no)
), found AS MATERIALIZED (
    SELECT w.no, w.refresh, i.*
    FROM wanted w
    JOIN haive.store_item i ON i.tenant_id = %(tenant)s AND i.namespace = w.namespace AND i.key = w.key
    WHERE i.expires_at IS NULL OR i.expires_at > now()
), held AS MATERIALIZED (
    SELECT i.namespace, i.key
    FROM found f
    JOIN haive.store_item i ON i.tenant_id = %(tenant)s AND i.namespace = f.namespace AND i.key = f.key
    WHERE f.refresh AND f.ttl_minutes IS NOT NULL
    FOR NO KEY UPDATE OF i SKIP LOCKED
), refreshed AS (
    UPDATE haive.store_item i SET expires_at = now() + i.ttl_minutes * interval '1 minute'
    FROM held h
    WHERE i.tenant_id = %(tenant)s AND i.namespace = h.namespace AND i.key = h.key
)
SELECT no, CASE WHEN exact IS NULL THEN value END, exact, created_at, updated_at FROM found;

-- name: search_items
-- The newest live items of a scope.
WITH found AS MATERIALIZED (
    SELECT i.*
    FROM haive.store_item i
    WHERE i.tenant_id = %(tenant)s AND i.namespace >= %(low)s AND i.namespace < %(high)s
      AND (i.expires_at IS NULL OR i.expires_at > now()) /* filters */
    ORDER BY i.updated_at DESC, i.namespace, i.key
    LIMIT %(limit)s OFFSET %(offset)s
), held AS MATERIALIZED (
    SELECT i.namespace, i.key
    FROM found f
    JOIN haive.store_item i ON i.tenant_id = %(tenant)s AND i.namespace = f.namespace AND i.key = f.key
    WHERE %(refresh)s AND f.ttl_minutes IS NOT NULL
    FOR NO KEY UPDATE OF i SKIP LOCKED
), refreshed AS (
    UPDATE haive.store_item i SET expires_at = now() + i.ttl_minutes * interval '1 minute'
    FROM held h
    WHERE i.tenant_id = %(tenant)s AND i.namespace = h.namespace AND i.key = h.key
)
SELECT namespace, key, CASE WHEN exact IS NULL THEN value END, exact, created_at, updated_at
FROM found
ORDER BY updated_at DESC, namespace, key;

-- name: where_eq
COALESCE(i.value #> %(path)s::text[], 'null') = %(operand)s::jsonb

-- name: where_ne
COALESCE(i.value #> %(path)s::text[], 'null') <> %(operand)s::jsonb

-- name: where_object
jsonb_typeof(i.value #> %(path)s::text[]) = 'object'

-- name: where_list
CASE WHEN jsonb_typeof(i.value #> %(path)s::text[]) = 'array'
     THEN jsonb_array_length(i.value #> %(path)s::text[]) = %(operand)s::integer END

-- name: where_number_gt
jsonb_typeof(i.value #> %(path)s::text[]) = 'number' AND i.value #> %(path)s::text[] > %(operand)s::jsonb

-- name: where_number_gte
jsonb_typeof(i.value #> %(path)s::text[]) = 'number' AND i.value #> %(path)s::text[] >= %(operand)s::jsonb

-- name: where_number_lt
jsonb_typeof(i.value #> %(path)s::text[]) = 'number' AND i.value #> %(path)s::text[] < %(operand)s::jsonb

-- name: where_number_lte
jsonb_typeof(i.value #> %(path)s::text[]) = 'number' AND i.value #> %(path)s::text[] <= %(operand)s::jsonb

-- name: where_boolean_gt
jsonb_typeof(i.value #> %(path)s::text[]) = 'boolean' AND i.value #> %(path)s::text[] > %(operand)s::jsonb

-- name: where_boolean_gte
jsonb_typeof(i.value #> %(path)s::text[]) = 'boolean' AND i.value #> %(path)s::text[] >= %(operand)s::jsonb

-- name: where_boolean_lt
jsonb_typeof(i.value #> %(path)s::text[]) = 'boolean' AND i.value #> %(path)s::text[] < %(operand)s::jsonb

-- name: where_boolean_lte
jsonb_typeof(i.value #> %(path)s::text[]) = 'boolean' AND i.value #> %(path)s::text[] <= %(operand)s::jsonb

-- name: where_text_gt
jsonb_typeof(i.value #> %(path)s::text[]) = 'string' AND (i.value #>> %(path)s::text[]) COLLATE "C" > %(operand)s

-- name: where_text_gte
jsonb_typeof(i.value #> %(path)s::text[]) = 'string' AND (i.value #>> %(path)s::text[]) COLLATE "C" >= %(operand)s

-- name: where_text_lt
jsonb_typeof(i.value #> %(path)s::text[]) = 'string' AND (i.value #>> %(path)s::text[]) COLLATE "C" < %(operand)s

-- name: where_text_lte
jsonb_typeof(i.value #> %(path)s::text[]) = 'string' AND (i.value #>> %(path)s::text[]) COLLATE "C" <= %(operand)s

-- name: list_namespaces
-- Namespaces that hold a live item, cut to a depth, in the order of their text.
-- Walks the primary key: looks at 32 entries, then jumps behind the last namespace it saw (or
-- behind everything below it, when cut). One with a million items costs as much as one with 32,
-- nothing has to be kept up to date by writers, and LIMIT ends the walk.
WITH RECURSIVE walk (seen, start) AS (
    SELECT ARRAY[]::text[] COLLATE "C", %(low)s::text COLLATE "C"
    UNION ALL
    SELECT step.seen, step.start
    FROM walk, LATERAL (
        SELECT array_agg(DISTINCT cut.namespace ORDER BY cut.namespace) AS seen, max(cut.next) AS start
        FROM (
            SELECT i.namespace, string_to_array(left(i.namespace, -1), '.') AS labels
            FROM haive.store_item i
            WHERE i.tenant_id = %(tenant)s AND i.namespace >= walk.start AND i.namespace < %(high)s
              AND (i.expires_at IS NULL OR i.expires_at > now())
            ORDER BY i.namespace
            LIMIT 32
        ) entry, LATERAL (
            SELECT array_to_string(entry.labels[1:%(depth)s::integer], '.') COLLATE "C" AS path
        ) short, LATERAL (
            SELECT short.path || '.' AS namespace, short.path || '/' AS next
            WHERE cardinality(entry.labels) >= %(depth)s::integer
            UNION ALL
            SELECT entry.namespace, entry.namespace || E'\x01'
            WHERE cardinality(entry.labels) >= %(depth)s::integer IS NOT TRUE
        ) cut
    ) step
    WHERE walk.start IS NOT NULL
)
SELECT listed.namespace
FROM walk, unnest(walk.seen) AS listed (namespace)
WHERE listed.namespace ~ ALL (%(patterns)s::text[])
LIMIT %(limit)s OFFSET %(offset)s;

-- name: lock_items
-- Takes the locks of a batch that both deletes and puts, in the one order every batch uses.
SELECT i.namespace, i.key
FROM unnest(%(namespaces)s::text[], %(keys)s::text[]) AS w (namespace, key)
JOIN haive.store_item i ON i.tenant_id = %(tenant)s AND i.namespace = w.namespace AND i.key = w.key
ORDER BY i.namespace, i.key
FOR UPDATE OF i;

-- name: delete_items
DELETE FROM haive.store_item i
USING unnest(%(namespaces)s::text[], %(keys)s::text[]) AS w (namespace, key)
WHERE i.tenant_id = %(tenant)s AND i.namespace = w.namespace AND i.key = w.key;

-- name: put_items
-- New items, or new values of old ones. They arrive sorted, so that two batches cannot deadlock.
-- An item that has expired is gone, swept or not: what takes its place is new.
INSERT INTO haive.store_item AS old
    (tenant_id, namespace, key, created_at, updated_at, expires_at, ttl_minutes, value, exact)
SELECT %(tenant)s, p.namespace, p.key, now(), now(), now() + p.ttl_minutes * interval '1 minute', p.ttl_minutes,
       p.value, p.exact
FROM ROWS FROM (
    unnest(%(namespaces)s::text[], %(keys)s::text[], %(ttls)s::double precision[], %(exacts)s::bytea[]),
    jsonb_array_elements(%(values)s::jsonb)
) AS p (namespace, key, ttl_minutes, exact, value)
ON CONFLICT (tenant_id, namespace, key) DO UPDATE
SET value = excluded.value,
    exact = excluded.exact,
    created_at = CASE WHEN old.expires_at <= excluded.updated_at THEN excluded.created_at ELSE old.created_at END,
    updated_at = excluded.updated_at,
    expires_at = excluded.expires_at,
    ttl_minutes = excluded.ttl_minutes;

-- name: sweep_items
-- Deletes some expired items; those that another sweeper or a writer holds are left to it.
WITH expired AS MATERIALIZED (
    SELECT i.namespace, i.key
    FROM haive.store_item i
    WHERE i.tenant_id = %(tenant)s AND i.expires_at <= now()
    ORDER BY i.expires_at
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
)
DELETE FROM haive.store_item i
USING expired e
WHERE i.tenant_id = %(tenant)s AND i.namespace = e.namespace AND i.key = e.key;

-- name: search_settings
-- For the two searches below, until the end of their transaction. With sorting discouraged the
-- approximate one cannot fall back to sorting a whole scope, whatever the planner believes its size
-- to be; the exact one has to sort and does. A plan made once serves every scope and limit.
SELECT set_config('hnsw.iterative_scan', 'relaxed_order', true),
       set_config('hnsw.ef_search', %(ef_search)s, true),
       set_config('hnsw.max_scan_tuples', %(max_scan_tuples)s, true),
       set_config('ivfflat.iterative_scan', 'relaxed_order', true),
       set_config('ivfflat.probes', %(probes)s, true),
       set_config('enable_sort', 'off', true),
       set_config('plan_cache_mode', 'force_generic_plan', true);

-- name: search_exact
-- The nearest items of a scope, every vector of it measured, unless it has more than `most` (-1: always).
-- "+ 0" keeps the planner from the index. A vector whose item was rewritten since counts no more.
WITH size AS MATERIALIZED (
    SELECT count(*) AS vectors
    FROM (
        SELECT FROM haive.store_vector v
        WHERE v.tenant_id = %(tenant)s AND v.namespace >= %(low)s AND v.namespace < %(high)s
        LIMIT %(most)s::bigint + 1
    ) counted
), ranked AS MATERIALIZED (
    SELECT v.namespace, v.key, v.embedding OPERATOR(pgvector.<=>) %(query)s::pgvector.vector AS distance
    FROM haive.store_vector v
    JOIN haive.store_item i
      ON i.tenant_id = %(tenant)s AND i.namespace = v.namespace AND i.key = v.key AND i.updated_at = v.put_at
    WHERE (%(most)s::bigint < 0 OR (SELECT vectors FROM size) <= %(most)s::bigint)
      AND v.tenant_id = %(tenant)s AND v.namespace >= %(low)s AND v.namespace < %(high)s
      AND i.namespace >= %(low)s AND i.namespace < %(high)s
      AND (i.expires_at IS NULL OR i.expires_at > now()) /* filters */
    ORDER BY (v.embedding OPERATOR(pgvector.<=>) %(query)s::pgvector.vector) + 0, v.namespace, v.key
    LIMIT %(fetch)s
), /* best */

-- name: search_near
-- The nearest items of a scope by way of the index, roughly in order and more than asked for.
WITH size AS MATERIALIZED (
    SELECT 0::bigint AS vectors
), ranked AS MATERIALIZED (
    SELECT v.namespace, v.key, v.embedding OPERATOR(pgvector.<=>) %(query)s::pgvector.vector AS distance
    FROM haive.store_vector v
    JOIN haive.store_item i
      ON i.tenant_id = %(tenant)s AND i.namespace = v.namespace AND i.key = v.key AND i.updated_at = v.put_at
    WHERE v.tenant_id = %(tenant)s AND v.namespace >= %(low)s AND v.namespace < %(high)s
      AND (i.expires_at IS NULL OR i.expires_at > now()) /* filters */
    ORDER BY v.embedding OPERATOR(pgvector.<=>) %(query)s::pgvector.vector
    LIMIT %(fetch)s
), /* best */

-- name: best
-- Both searches end like this: an item is as near as its nearest vector. The first row tells how
-- many vectors the scope has and how many were ranked, also when nothing was found.
best AS (
    SELECT r.namespace, r.key, min(r.distance) AS distance
    FROM ranked r
    GROUP BY r.namespace, r.key
    ORDER BY 3, 1, 2
    LIMIT %(limit)s OFFSET %(offset)s
), found AS MATERIALIZED (
    SELECT b.distance, i.*
    FROM best b
    JOIN haive.store_item i ON i.tenant_id = %(tenant)s AND i.namespace = b.namespace AND i.key = b.key
), held AS MATERIALIZED (
    SELECT i.namespace, i.key
    FROM found f
    JOIN haive.store_item i ON i.tenant_id = %(tenant)s AND i.namespace = f.namespace AND i.key = f.key
    WHERE %(refresh)s AND f.ttl_minutes IS NOT NULL
    FOR NO KEY UPDATE OF i SKIP LOCKED
), refreshed AS (
    UPDATE haive.store_item i SET expires_at = now() + i.ttl_minutes * interval '1 minute'
    FROM held h
    WHERE i.tenant_id = %(tenant)s AND i.namespace = h.namespace AND i.key = h.key
)
SELECT told.vectors, told.ranked,
       namespace, key, CASE WHEN exact IS NULL THEN value END, exact, created_at, updated_at, distance
FROM (SELECT (SELECT vectors FROM size) AS vectors, (SELECT count(*) FROM ranked) AS ranked) told
LEFT JOIN found ON true
ORDER BY distance, namespace, key;

-- name: drop_vectors
-- The vectors of items that are about to be put again.
DELETE FROM haive.store_vector v
USING unnest(%(namespaces)s::text[], %(keys)s::text[]) AS w (namespace, key)
WHERE v.tenant_id = %(tenant)s AND v.namespace = w.namespace AND v.key = w.key;

-- name: put_vectors
-- now() is the updated_at of the items just put: they are written in the same transaction.
INSERT INTO haive.store_vector (tenant_id, namespace, key, field, put_at, embedding)
SELECT %(tenant)s, p.namespace, p.key, p.field, now(), p.embedding::pgvector.vector
FROM unnest(%(namespaces)s::text[], %(keys)s::text[], %(fields)s::text[], %(embeddings)s::text[])
    AS p (namespace, key, field, embedding);

-- name: inspect_vectors
-- Where pgvector is and which, whether the vector table is there, and its index: true, false (a
-- build that was cut off), or NULL for none.
SELECT (SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
        WHERE e.extname = 'vector'),
       (SELECT e.extversion FROM pg_extension e WHERE e.extname = 'vector'),
       to_regclass(%(table)s) IS NOT NULL,
       (SELECT x.indisvalid FROM pg_index x WHERE x.indexrelid = to_regclass(%(index)s));

-- name: create_extension
CREATE EXTENSION IF NOT EXISTS vector;

-- name: create_vectors
-- One vector of one field of an item. `put_at` is the item's updated_at when it was made.
-- PLAIN keeps a vector that fits into a page with its row: an exact search reads them all.
CREATE TABLE IF NOT EXISTS haive.store_vector (
    tenant_id text COLLATE "C" NOT NULL,
    namespace text COLLATE "C" NOT NULL,
    key       text COLLATE "C" NOT NULL,
    field     text COLLATE "C" NOT NULL,
    put_at    timestamptz NOT NULL,
    embedding pgvector.vector({dims}) NOT NULL,
    PRIMARY KEY (tenant_id, namespace, key, field),
    FOREIGN KEY (tenant_id, namespace, key) REFERENCES haive.store_item ON DELETE CASCADE
);

-- name: store_plain
ALTER TABLE haive.store_vector ALTER COLUMN embedding SET STORAGE PLAIN;

-- name: isolate_vectors
CALL haive.isolate_tenants('{table}');

-- name: share_vectors
-- Whoever may use the items may use their vectors.
DO $$
DECLARE
    given record;
BEGIN
    FOR given IN
        SELECT a.grantee::regrole AS role, string_agg(a.privilege_type, ', ') AS privileges
        FROM pg_class c, aclexplode(c.relacl) a
        WHERE c.oid = '{items}'::regclass AND a.grantee <> 0
          AND a.privilege_type IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
        GROUP BY a.grantee
    LOOP
        EXECUTE format('GRANT %s ON haive.store_vector TO %s', given.privileges, given.role);
    END LOOP;
END
$$;

-- name: any_vector
SELECT FROM haive.store_vector LIMIT 1;

-- name: create_index
CREATE INDEX IF NOT EXISTS {index} ON haive.store_vector USING {method};

-- name: create_index_concurrently
CREATE INDEX CONCURRENTLY IF NOT EXISTS {index} ON haive.store_vector USING {method};

-- name: drop_index
DROP INDEX CONCURRENTLY IF EXISTS haive.{index};
