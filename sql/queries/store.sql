-- Queries of the store. The slots `scope` and `filters` take conditions, the parts `where_…` below, each with its own
-- parameters. `vectors`, `vector_type` and `distance` are the table, the type and the distance operator of the
-- store's index: see `VectorIndex.slots`.
--
-- Parameters stand in sub-selects where their values would change the planner's estimates: then a
-- plan for any values is as good as one for these, and Postgres keeps it. Planning is most of the
-- time of a small statement (a get: 480 µs planned each time, 70 µs not).
--
-- The tenant is bound although the policy adds it too: Citus routes by it, and Postgres turns the
-- pair into one comparison made once.

-- part: live
-- Not expired, or the store was told to show what is expired and not swept yet.
(i.expires_at IS NULL OR i.expires_at > now() OR %(expired)s)

-- part: columns
-- The columns of a value, without the jsonb where another column has it.
CASE WHEN exact_json IS NULL AND payload IS NULL THEN value END, exact_json, key_order, payload

-- part: may_refresh
-- An item in plaintext is not written again once its tenant has a data key: it could no longer be told from a forged one.
(i.payload IS NOT NULL OR (SELECT haive.accepts_plaintext(%(tenant)s)))

-- part: refreshed_gets
-- Sets the time again at which the items expire whose reader asks for it, as far as no transaction holds them.
, held AS MATERIALIZED (
    SELECT i.ctid AS place
    FROM found f JOIN haive.store_item i ON i.ctid = f.place
    WHERE i.tenant_id = %(tenant)s AND f.refresh AND f.ttl_minutes IS NOT NULL AND /* may_refresh */
    FOR NO KEY UPDATE OF i SKIP LOCKED
), refreshed AS (
    UPDATE haive.store_item i SET expires_at = now() + i.ttl_minutes * interval '1 minute'
    FROM held h WHERE i.tenant_id = %(tenant)s AND i.ctid = h.place
)

-- part: refreshed
-- The same for all items of a search.
, held AS MATERIALIZED (
    SELECT i.ctid AS place
    FROM found f JOIN haive.store_item i ON i.ctid = f.place
    WHERE i.tenant_id = %(tenant)s AND %(refresh)s AND f.ttl_minutes IS NOT NULL AND /* may_refresh */
    FOR NO KEY UPDATE OF i SKIP LOCKED
), refreshed AS (
    UPDATE haive.store_item i SET expires_at = now() + i.ttl_minutes * interval '1 minute'
    FROM held h WHERE i.tenant_id = %(tenant)s AND i.ctid = h.place
)

-- name: get_items
-- slot: refreshing
-- The live items among those wanted; `no` is their place in the question. `refreshing` is the part above, or nothing
-- where this role or server may only read.
-- LATERAL with OFFSET 0: one look into the primary key for each, whatever the planner believes of a
-- table that was filled a moment ago. A read never waits: a row that someone else holds is just
-- being refreshed or rewritten. Row addresses (ctid) are good within one statement.
WITH found AS MATERIALIZED (
    SELECT w.no, w.refresh, i.*
    FROM unnest((SELECT %(namespaces)s::text[]), (SELECT %(keys)s::text[]), (SELECT %(refreshes)s::boolean[]))
        WITH ORDINALITY AS w (namespace, key, refresh, no),
    LATERAL (
        SELECT i.ctid AS place, i.ttl_minutes, i.value, i.exact_json, i.key_order, i.payload, i.created_at, i.updated_at
        FROM haive.store_item i
        WHERE i.tenant_id = %(tenant)s AND i.namespace = w.namespace AND i.key = w.key
          AND /* live */
        OFFSET 0
    ) i
)/* refreshing */
SELECT no, created_at, updated_at, /* columns */ FROM found;

-- name: search_items
-- slot: scope
-- slot: filters
-- slot: refreshing
-- The newest live items of a scope. Sorted without their values, which would be copied along.
WITH newest AS MATERIALIZED (
    SELECT i.ctid AS place, i.updated_at, i.namespace, i.key
    FROM haive.store_item i
    WHERE i.tenant_id = %(tenant)s /* scope */
      AND /* live */ /* filters */
    ORDER BY i.updated_at DESC, i.namespace, i.key
    LIMIT %(limit)s OFFSET %(offset)s
), found AS MATERIALIZED (
    SELECT i.*
    FROM newest n, LATERAL (
        SELECT i.ctid AS place, i.* FROM haive.store_item i
        WHERE i.tenant_id = %(tenant)s AND i.ctid = n.place
        OFFSET 0
    ) i
)/* refreshing */
SELECT namespace, key, created_at, updated_at, /* columns */
FROM found
ORDER BY updated_at DESC, namespace, key;

-- part: where_in_scope
i.namespace >= (SELECT %(low)s) AND i.namespace < (SELECT %(high)s)

-- part: where_contains
-- slot: number
i.value @> (SELECT %(operand_/* number */)s::jsonb)

-- part: where_matches
-- slot: number
-- `path` is a jsonpath predicate whose variables are in `operand`. Unknown is NULL, and finds nothing.
jsonb_path_match(i.value, (SELECT %(path_/* number */)s::jsonpath), (SELECT %(operand_/* number */)s::jsonb), true)

-- part: where_eq
-- slot: number
COALESCE(i.value #> (SELECT %(path_/* number */)s::text[]), 'null') = (SELECT %(operand_/* number */)s::jsonb)

-- part: where_ne
-- slot: number
COALESCE(i.value #> (SELECT %(path_/* number */)s::text[]), 'null') <> (SELECT %(operand_/* number */)s::jsonb)

-- part: walk
-- Walks the primary key: looks at 64 entries, then jumps behind the last namespace it saw (or
-- behind everything below it, when cut). One with a million items costs as much as one with 64,
-- nothing has to be kept up to date by writers, and a LIMIT ends the walk.
WITH RECURSIVE walk (seen, start) AS (
    SELECT ARRAY[]::text[] COLLATE "C", %(low)s::text COLLATE "C"
    UNION ALL
    SELECT step.seen, step.start
    FROM walk, LATERAL (
        SELECT array_agg(DISTINCT cut.namespace) AS seen, max(cut.next) AS start
        FROM (
            SELECT DISTINCT entry.namespace
            FROM (
                SELECT i.namespace
                FROM haive.store_item i
                WHERE i.tenant_id = %(tenant)s AND i.namespace >= walk.start AND i.namespace < %(high)s
                  AND /* live */
                ORDER BY i.namespace
                LIMIT 64
            ) entry
        ) distinct_, LATERAL (
            SELECT distinct_.namespace, distinct_.namespace || E'\x01' AS next
            WHERE %(depth)s::integer IS NULL
            UNION ALL
            SELECT short.path || '.', short.path || CASE WHEN short.uncut THEN E'.\x01' ELSE '/' END
            FROM (
                SELECT array_to_string(split.labels[1:%(depth)s::integer], '.') COLLATE "C" AS path,
                       cardinality(split.labels) < %(depth)s::integer AS uncut
                FROM (SELECT string_to_array(left(distinct_.namespace, -1), '.') AS labels) split
            ) short
            WHERE %(depth)s::integer IS NOT NULL
        ) cut
    ) step
    WHERE walk.start IS NOT NULL
)

-- part: witness_item
-- Fills `witness` where names are sealed: an item of the namespace, whose key was sealed for it.
, (SELECT ARRAY[i.namespace, i.key]
   FROM haive.store_item i
   WHERE i.tenant_id = %(tenant)s AND i.namespace >= listed.whole AND i.namespace < left(listed.whole, -1) || '/'
     AND /* live */
   ORDER BY i.namespace, i.key
   LIMIT 1)

-- name: list_namespaces
-- slot: witness
-- Namespaces that hold a live item, cut to a depth, in the order of their text.
/* walk */
SELECT listed.whole /* witness */
FROM (
    SELECT seen.whole
    FROM walk, unnest(walk.seen) AS seen (whole)
    LIMIT %(limit)s OFFSET %(offset)s
) listed;

-- name: list_matching
-- slot: witness
-- The same, of those that match all patterns before they are cut.
/* walk */
SELECT listed.namespace /* witness */
FROM (
    SELECT array_to_string(
               (string_to_array(left(seen.whole, -1), '.'))[1:COALESCE(%(cut)s::integer, 2147483647)], '.'
           ) COLLATE "C" || '.' AS namespace,
           min(seen.whole) AS whole
    FROM walk, unnest(walk.seen) AS seen (whole)
    WHERE seen.whole ~ ALL (%(patterns)s::text[])
    GROUP BY 1
    ORDER BY 1
    LIMIT %(limit)s OFFSET %(offset)s
) listed;

-- name: lock_items
-- Comes before several deletions, and takes their locks in the order of the keys, so that two
-- batches cannot deadlock.
SELECT i.place
FROM unnest((SELECT %(namespaces)s::text[]), (SELECT %(keys)s::text[])) AS w (namespace, key),
LATERAL (
    SELECT i.ctid AS place
    FROM haive.store_item i
    WHERE i.tenant_id = %(tenant)s AND i.namespace = w.namespace AND i.key = w.key
    FOR UPDATE
) i
WHERE (SELECT haive.check_data_key(%(tenant)s, %(key_no)s::integer, %(data_key)s::bytea));

-- name: delete_item
-- Without the tenant's key it is an error: the item's sealed name would not be found.
DELETE FROM haive.store_item i
WHERE i.tenant_id = %(tenant)s AND i.namespace = %(namespace)s AND i.key = %(key)s
  AND (SELECT haive.check_data_key(%(tenant)s, %(key_no)s::integer, %(data_key)s::bytea));

-- name: delete_items
-- The rows are locked already, so that their addresses cannot change.
DELETE FROM haive.store_item d
USING unnest((SELECT %(namespaces)s::text[]), (SELECT %(keys)s::text[])) AS w (namespace, key),
LATERAL (
    SELECT i.ctid AS place
    FROM haive.store_item i
    WHERE i.tenant_id = %(tenant)s AND i.namespace = w.namespace AND i.key = w.key
    OFFSET 0
) i
WHERE d.tenant_id = %(tenant)s AND d.ctid = i.place;

-- part: or_replace
-- Both puts end like this. An item that has expired is gone, swept or not: what takes its place is new.
ON CONFLICT (tenant_id, namespace, key) DO UPDATE
SET value = excluded.value,
    exact_json = excluded.exact_json,
    key_order = excluded.key_order,
    payload = excluded.payload,
    created_at = CASE WHEN old.expires_at <= excluded.updated_at THEN excluded.created_at ELSE old.created_at END,
    updated_at = excluded.updated_at,
    expires_at = excluded.expires_at,
    ttl_minutes = excluded.ttl_minutes;

-- name: put_item
-- put_items for one, which is what most puts are; it saves an eighth of the time.
INSERT INTO haive.store_item AS old
    (tenant_id, namespace, key, created_at, updated_at, expires_at, ttl_minutes, value, exact_json, key_order, payload)
SELECT %(tenant)s, %(namespace)s, %(key)s, now(), now(),
       now() + %(ttl)s::double precision * interval '1 minute', %(ttl)s::double precision,
       %(value)s::jsonb, %(exact_json)s::bytea, %(key_order)s::bytea, %(payload)s::bytea
WHERE haive.check_data_key(%(tenant)s, %(key_no)s::integer, %(data_key)s::bytea)
/* or_replace */;

-- name: put_items
-- New items, or new values of old ones. They arrive sorted, so that two batches cannot deadlock.
INSERT INTO haive.store_item AS old
    (tenant_id, namespace, key, created_at, updated_at, expires_at, ttl_minutes, value, exact_json, key_order, payload)
SELECT %(tenant)s, p.namespace, p.key, now(), now(), now() + p.ttl_minutes * interval '1 minute', p.ttl_minutes,
       p.value, p.exact_json, p.key_order, p.payload
FROM ROWS FROM (
    unnest((SELECT %(namespaces)s::text[]), (SELECT %(keys)s::text[]),
           (SELECT %(ttls)s::double precision[]), (SELECT %(exact_jsons)s::bytea[]),
           (SELECT %(key_orders)s::bytea[]), (SELECT %(payloads)s::bytea[])),
    jsonb_array_elements((SELECT %(values)s::jsonb))
) AS p (namespace, key, ttl_minutes, exact_json, key_order, payload, value)
WHERE (SELECT haive.check_data_key(%(tenant)s, %(key_no)s::integer, %(data_key)s::bytea))
/* or_replace */;

-- name: has_items
-- Whether the tenant has any item.
SELECT EXISTS (SELECT FROM haive.store_item WHERE tenant_id = %(tenant)s);

-- name: count_items
SELECT count(*) FROM haive.store_item WHERE tenant_id = %(tenant)s;

-- name: plaintext_items
-- Some items of a range that are in plaintext, after the one named, in the order of their keys; locked.
SELECT i.namespace, i.key, /* columns */
FROM haive.store_item i
WHERE i.tenant_id = %(tenant)s AND i.payload IS NULL AND i.namespace >= %(low)s AND i.namespace < %(high)s
  AND (i.namespace, i.key) > (%(after_namespace)s, %(after_key)s)
ORDER BY i.namespace, i.key
LIMIT %(limit)s
FOR UPDATE;

-- name: items_are_trusted
-- True if locked items were all written before the moment that was recorded when the tenant's first key was made. A
-- statement of its own: the one that waited for the locks may have got rows of transactions that its snapshot is older than.
SELECT bool_and(haive.written_before(i.xmin, %(moment)s))
FROM unnest((SELECT %(namespaces)s::text[]), (SELECT %(keys)s::text[])) AS w (namespace, key),
LATERAL (
    SELECT i.xmin
    FROM haive.store_item i
    WHERE i.tenant_id = %(tenant)s AND i.namespace = w.namespace AND i.key = w.key
    OFFSET 0
) i;

-- name: seal_items
-- Makes the sealed rows of items in plaintext, and returns the names of those that no sealed row has yet.
INSERT INTO haive.store_item
    (tenant_id, namespace, key, created_at, updated_at, expires_at, ttl_minutes, value, payload)
SELECT %(tenant)s, p.sealed_namespace, p.sealed_key, i.created_at, i.updated_at, i.expires_at, i.ttl_minutes,
       p.value, p.payload
FROM ROWS FROM (
    unnest((SELECT %(namespaces)s::text[]), (SELECT %(keys)s::text[]), (SELECT %(sealed_namespaces)s::text[]),
           (SELECT %(sealed_keys)s::text[]), (SELECT %(payloads)s::bytea[])),
    jsonb_array_elements((SELECT %(values)s::jsonb))
) AS p (namespace, key, sealed_namespace, sealed_key, payload, value)
JOIN haive.store_item i ON i.tenant_id = %(tenant)s AND i.namespace = p.namespace AND i.key = p.key
ON CONFLICT (tenant_id, namespace, key) DO NOTHING
RETURNING namespace, key;

-- name: rename_vectors
-- The vectors of items that are stored under other names now.
SELECT haive.rename_vectors(
    %(tenant)s, %(namespaces)s::text[], %(keys)s::text[], %(sealed_namespaces)s::text[], %(sealed_keys)s::text[]
);

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
-- For the three searches below, until the end of their transaction. With sorting discouraged the
-- one that goes by the index cannot fall back to sorting a whole scope, whatever the planner
-- believes its size to be; the others have to sort and do. Up to Postgres 17 what is discouraged makes a plan look
-- dear, and dear plans are compiled, which takes two seconds.
SELECT set_config('hnsw.iterative_scan', 'relaxed_order', true),
       set_config('hnsw.ef_search', %(ef_search)s, true),
       set_config('hnsw.max_scan_tuples', %(max_scan_tuples)s, true),
       set_config('ivfflat.iterative_scan', 'relaxed_order', true),
       set_config('ivfflat.probes', %(probes)s, true),
       set_config('enable_sort', 'off', true),
       set_config('jit', 'off', true),
       set_config('plan_cache_mode', 'force_generic_plan', true);

-- part: best
-- slot: refreshing
-- All three end like this: an item is as near as its nearest vector. The first row tells how
-- many vectors the scope has and how many were ranked, also when nothing was found.
best AS (
    SELECT r.namespace, r.key, min(r.distance) AS distance
    FROM ranked r
    GROUP BY r.namespace, r.key
    ORDER BY 3, 1, 2
    LIMIT %(limit)s OFFSET %(offset)s
), found AS MATERIALIZED (
    SELECT b.distance, i.*
    FROM best b,
    LATERAL (
        SELECT i.ctid AS place, i.*
        FROM haive.store_item i
        WHERE i.tenant_id = %(tenant)s AND i.namespace = b.namespace AND i.key = b.key
        OFFSET 0
    ) i
)/* refreshing */
SELECT told.vectors, told.ranked, namespace, key, created_at, updated_at, /* columns */, distance
FROM (SELECT (SELECT vectors FROM size) AS vectors, (SELECT count(*) FROM ranked) AS ranked) told
LEFT JOIN found ON true
ORDER BY distance, namespace, key;

-- name: search_exact
-- slot: vectors
-- slot: distance
-- slot: vector_type
-- slot: filters
-- The nearest items of a scope, every vector of it measured, unless it has more than `most`.
-- Items are looked up in the order of distance, until there are enough. "+ 0" keeps the planner
-- from the index. A vector whose item was rewritten without it (item_updated_at) counts no more.
WITH size AS MATERIALIZED (
    SELECT count(*) AS vectors
    FROM (
        SELECT FROM haive./* vectors */ v
        WHERE v.tenant_id = %(tenant)s AND v.namespace >= %(low)s AND v.namespace < %(high)s
        LIMIT %(most)s::bigint + 1
    ) counted
), ranked AS MATERIALIZED (
    SELECT v.namespace, v.key, v.distance
    FROM (
        SELECT v.namespace, v.key, v.item_updated_at,
               (v.embedding OPERATOR(/* distance */) (SELECT %(query)s::/* vector_type */)) + 0 AS distance
        FROM haive./* vectors */ v
        WHERE (SELECT vectors FROM size) <= %(most)s::bigint
          AND v.tenant_id = %(tenant)s AND v.namespace >= %(low)s AND v.namespace < %(high)s
        ORDER BY distance, v.namespace, v.key
        LIMIT %(measure)s::bigint
    ) v, LATERAL (
        SELECT FROM haive.store_item i
        WHERE i.tenant_id = %(tenant)s AND i.namespace = v.namespace AND i.key = v.key AND i.updated_at = v.item_updated_at
          AND /* live */ /* filters */
        OFFSET 0
    ) i
    ORDER BY v.distance, v.namespace, v.key
    LIMIT %(fetch)s::bigint
), /* best */

-- name: search_near
-- slot: distance
-- slot: vector_type
-- slot: vectors
-- slot: filters
-- The nearest items of a scope by way of the index, roughly in order and more than asked for.
WITH size AS MATERIALIZED (
    SELECT 0::bigint AS vectors
), ranked AS MATERIALIZED (
    SELECT v.namespace, v.key, v.embedding OPERATOR(/* distance */) %(query)s::/* vector_type */ AS distance
    FROM haive./* vectors */ v, LATERAL (
        SELECT FROM haive.store_item i
        WHERE i.tenant_id = %(tenant)s AND i.namespace = v.namespace AND i.key = v.key AND i.updated_at = v.item_updated_at
          AND /* live */ /* filters */
        OFFSET 0
    ) i
    WHERE v.tenant_id = %(tenant)s AND v.namespace >= %(low)s AND v.namespace < %(high)s
    ORDER BY v.embedding OPERATOR(/* distance */) %(query)s::/* vector_type */
    LIMIT %(fetch)s::bigint
), /* best */

-- name: search_all
-- slot: distance
-- slot: vector_type
-- slot: vectors
-- slot: filters
-- The nearest items of a scope, from the items to their vectors: for a large scope where the index
-- gave up, which is where a filter leaves few.
WITH size AS MATERIALIZED (
    SELECT 0::bigint AS vectors
), ranked AS MATERIALIZED (
    SELECT i.namespace, i.key, v.distance
    FROM haive.store_item i, LATERAL (
        SELECT (v.embedding OPERATOR(/* distance */) (SELECT %(query)s::/* vector_type */)) + 0 AS distance
        FROM haive./* vectors */ v
        WHERE v.tenant_id = %(tenant)s AND v.namespace = i.namespace AND v.key = i.key AND v.item_updated_at = i.updated_at
        OFFSET 0
    ) v
    WHERE i.tenant_id = %(tenant)s AND i.namespace >= %(low)s AND i.namespace < %(high)s
      AND /* live */ /* filters */
    ORDER BY v.distance, i.namespace, i.key
    LIMIT %(fetch)s::bigint
), /* best */

-- name: drop_vectors
-- slot: vectors
-- The vectors of items that are about to get new ones. Whoever touches a vector holds its item.
DELETE FROM haive./* vectors */ d
USING unnest((SELECT %(namespaces)s::text[]), (SELECT %(keys)s::text[])) AS w (namespace, key),
LATERAL (
    SELECT v.ctid AS place
    FROM haive./* vectors */ v
    WHERE v.tenant_id = %(tenant)s AND v.namespace = w.namespace AND v.key = w.key
    OFFSET 0
) v
WHERE d.tenant_id = %(tenant)s AND d.ctid = v.place;

-- name: put_vectors
-- slot: vectors
-- slot: vector_type
-- now() is the updated_at of the items just put: they are written in the same transaction.
INSERT INTO haive./* vectors */ (tenant_id, namespace, key, field, item_updated_at, embedding)
SELECT %(tenant)s, p.namespace, p.key, p.field, now(), p.embedding::/* vector_type */
FROM unnest((SELECT %(namespaces)s::text[]), (SELECT %(keys)s::text[]),
            (SELECT %(fields)s::text[]), (SELECT %(embeddings)s::text[]))
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
-- slot: vectors
-- slot: vector_type
-- slot: dims
-- One vector of one field of an item. `item_updated_at` is the item's updated_at when it was made.
-- PLAIN keeps a vector that fits into a page with its row: an exact search reads them all.
CREATE TABLE IF NOT EXISTS haive./* vectors */ (
    item_updated_at    timestamptz NOT NULL,
    tenant_id text COLLATE "C" NOT NULL,
    namespace text COLLATE "C" NOT NULL,
    key       text COLLATE "C" NOT NULL,
    field     text COLLATE "C" NOT NULL,
    embedding /* vector_type */(/* dims */) NOT NULL,
    PRIMARY KEY (tenant_id, namespace, key, field),
    FOREIGN KEY (tenant_id, namespace, key) REFERENCES haive.store_item ON DELETE CASCADE
);

-- name: store_plain
-- slot: vectors
ALTER TABLE haive./* vectors */ ALTER COLUMN embedding SET STORAGE PLAIN;

-- name: isolate_vectors
-- slot: vectors
CALL haive.isolate_tenants('/* vectors */');

-- name: share_vectors
-- slot: items_regclass
-- slot: vectors
-- Whoever may use the items may use their vectors.
DO $$
DECLARE
    given record;
BEGIN
    FOR given IN
        SELECT a.grantee::regrole AS role, string_agg(a.privilege_type, ', ') AS privileges
        FROM pg_class c, aclexplode(c.relacl) a
        WHERE c.oid = '/* items_regclass */'::regclass AND a.grantee <> 0
          AND a.privilege_type IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
        GROUP BY a.grantee
    LOOP
        EXECUTE format('GRANT %s ON haive./* vectors */ TO %s', given.privileges, given.role);
    END LOOP;
END
$$;

-- name: any_vector
-- slot: vectors_regclass
-- Asks for the size of the file: the owner sees no tenant's rows.
SELECT pg_relation_size('/* vectors_regclass */') > 0;

-- name: create_index
-- slot: index
-- slot: vectors
-- slot: method
CREATE INDEX IF NOT EXISTS /* index */ ON haive./* vectors */ USING /* method */;

-- name: create_index_concurrently
-- slot: index
-- slot: vectors
-- slot: method
CREATE INDEX CONCURRENTLY IF NOT EXISTS /* index */ ON haive./* vectors */ USING /* method */;

-- name: drop_index
-- slot: index
DROP INDEX CONCURRENTLY IF EXISTS haive./* index */;
