-- Queries of the checkpointer. Rows of the reading ones share one shape, so that a checkpoint and all
-- that belongs to it come in one round trip:
--   kind 't' thread      number = epoch
--   kind 'c' checkpoint  id, number = depth, other = parent's id, ns, payload = head
--   kind 'w' write       id of its checkpoint, number = no, payload
--   kind 'f' frozen      number = no, payload: a frozen sequence that a checkpoint or write names

-- name: create_and_put
-- The first checkpoint of a thread: the thread's row, the pieces and the checkpoint. No row if the thread is there.
WITH made AS (
    INSERT INTO haive.thread (thread_key, epoch, tenant_id, thread_id)
    VALUES (%(thread)s, %(epoch)s, %(tenant)s, %(thread_id)s)
    ON CONFLICT (thread_key) DO NOTHING RETURNING 1
), pieces AS (
    INSERT INTO haive.piece (thread_key, no, tenant_id, payload)
    SELECT %(thread)s, p.no, %(tenant)s, p.payload
    FROM made, unnest(%(numbers)s::bigint[], %(payloads)s::bytea[]) AS p (no, payload)
)
INSERT INTO haive.checkpoint (thread_key, ns_key, run_key, checkpoint_id, parent_id, tenant_id, ns, frozen, labels, head)
SELECT %(thread)s, %(ns_key)s, %(run_key)s, %(id)s, %(parent)s, %(tenant)s, %(ns)s, %(frozen)s, %(labels)s::jsonb, %(head)s
FROM made
RETURNING 1;

-- name: put
-- A checkpoint and its pieces, if the thread is still at this epoch; no row if it is not. Numbers in a lane not confirmed yet.
WITH held AS MATERIALIZED (
    SELECT 1 FROM haive.thread WHERE thread_key = %(thread)s AND epoch = %(epoch)s FOR SHARE
), pieces AS (
    INSERT INTO haive.piece (thread_key, no, tenant_id, payload)
    SELECT %(thread)s, p.no, %(tenant)s, p.payload
    FROM held, unnest(%(numbers)s::bigint[], %(payloads)s::bytea[]) AS p (no, payload)
)
INSERT INTO haive.checkpoint (thread_key, ns_key, run_key, checkpoint_id, parent_id, tenant_id, ns, frozen, labels, head)
SELECT %(thread)s, %(ns_key)s, %(run_key)s, %(id)s, %(parent)s, %(tenant)s, %(ns)s, %(frozen)s, %(labels)s::jsonb, %(head)s
FROM held
ON CONFLICT (thread_key, ns_key, checkpoint_id) DO UPDATE
SET run_key = excluded.run_key, parent_id = excluded.parent_id, frozen = excluded.frozen,
    labels = excluded.labels, head = excluded.head
RETURNING 1;

-- name: put_shared
-- The same with numbers of a confirmed lane: a piece may have been sent by another statement of this process already.
WITH held AS MATERIALIZED (
    SELECT 1 FROM haive.thread WHERE thread_key = %(thread)s AND epoch = %(epoch)s FOR SHARE
), pieces AS (
    INSERT INTO haive.piece (thread_key, no, tenant_id, payload)
    SELECT %(thread)s, p.no, %(tenant)s, p.payload
    FROM held, unnest(%(numbers)s::bigint[], %(payloads)s::bytea[]) AS p (no, payload)
    ON CONFLICT (thread_key, no) DO NOTHING
)
INSERT INTO haive.checkpoint (thread_key, ns_key, run_key, checkpoint_id, parent_id, tenant_id, ns, frozen, labels, head)
SELECT %(thread)s, %(ns_key)s, %(run_key)s, %(id)s, %(parent)s, %(tenant)s, %(ns)s, %(frozen)s, %(labels)s::jsonb, %(head)s
FROM held
ON CONFLICT (thread_key, ns_key, checkpoint_id) DO UPDATE
SET run_key = excluded.run_key, parent_id = excluded.parent_id, frozen = excluded.frozen,
    labels = excluded.labels, head = excluded.head
RETURNING 1;

-- name: create_and_write
-- Pending writes that arrive before their thread's first checkpoint.
WITH made AS (
    INSERT INTO haive.thread (thread_key, epoch, tenant_id, thread_id)
    VALUES (%(thread)s, %(epoch)s, %(tenant)s, %(thread_id)s)
    ON CONFLICT (thread_key) DO NOTHING RETURNING 1
), pieces AS (
    INSERT INTO haive.piece (thread_key, no, tenant_id, payload)
    SELECT %(thread)s, p.no, %(tenant)s, p.payload
    FROM made, unnest(%(numbers)s::bigint[], %(payloads)s::bytea[]) AS p (no, payload)
)
INSERT INTO haive.pending_write (thread_key, ns_key, no, checkpoint_id, tenant_id, frozen, payload)
SELECT %(thread)s, %(ns_key)s, %(no)s, %(id)s, %(tenant)s, %(frozen)s, %(payload)s FROM made
RETURNING 1;

-- name: write
-- A task's pending writes and their pieces, if the thread is still at this epoch.
WITH held AS MATERIALIZED (
    SELECT 1 FROM haive.thread WHERE thread_key = %(thread)s AND epoch = %(epoch)s FOR SHARE
), pieces AS (
    INSERT INTO haive.piece (thread_key, no, tenant_id, payload)
    SELECT %(thread)s, p.no, %(tenant)s, p.payload
    FROM held, unnest(%(numbers)s::bigint[], %(payloads)s::bytea[]) AS p (no, payload)
)
INSERT INTO haive.pending_write (thread_key, ns_key, no, checkpoint_id, tenant_id, frozen, payload)
SELECT %(thread)s, %(ns_key)s, %(no)s, %(id)s, %(tenant)s, %(frozen)s, %(payload)s FROM held
RETURNING 1;

-- name: write_shared
-- The same with numbers of a confirmed lane.
WITH held AS MATERIALIZED (
    SELECT 1 FROM haive.thread WHERE thread_key = %(thread)s AND epoch = %(epoch)s FOR SHARE
), pieces AS (
    INSERT INTO haive.piece (thread_key, no, tenant_id, payload)
    SELECT %(thread)s, p.no, %(tenant)s, p.payload
    FROM held, unnest(%(numbers)s::bigint[], %(payloads)s::bytea[]) AS p (no, payload)
    ON CONFLICT (thread_key, no) DO NOTHING
), kept AS (
    INSERT INTO haive.pending_write (thread_key, ns_key, no, checkpoint_id, tenant_id, frozen, payload)
    SELECT %(thread)s, %(ns_key)s, %(no)s, %(id)s, %(tenant)s, %(frozen)s, %(payload)s FROM held
    ON CONFLICT (thread_key, ns_key, checkpoint_id, no) DO NOTHING
)
SELECT 1 FROM held;

-- name: epoch
-- The thread's epoch, no row if it is not stored.
SELECT epoch FROM haive.thread WHERE thread_key = %(thread)s;

-- name: get_latest
-- The latest checkpoint of a namespace.
WITH c AS MATERIALIZED (
    SELECT checkpoint_id, parent_id, ns, frozen, head FROM haive.checkpoint
    WHERE thread_key = %(thread)s AND ns_key = %(ns_key)s
    ORDER BY checkpoint_id DESC LIMIT 1
), w AS MATERIALIZED (
    SELECT w.checkpoint_id, w.no, w.frozen, w.payload
    FROM c CROSS JOIN LATERAL (
        SELECT checkpoint_id, no, frozen, payload FROM haive.pending_write
        WHERE thread_key = %(thread)s AND ns_key = %(ns_key)s AND checkpoint_id = c.checkpoint_id
        OFFSET 0) AS w
)
SELECT 't', NULL::bytea, t.epoch, NULL::bytea, NULL::text, NULL::bytea FROM haive.thread t WHERE t.thread_key = %(thread)s
UNION ALL SELECT 'c', checkpoint_id, 0, parent_id, ns, head FROM c
UNION ALL SELECT 'w', checkpoint_id, no, NULL, NULL, payload FROM w
UNION ALL SELECT 'f', NULL, p.no, NULL, NULL, p.payload FROM haive.piece p
WHERE p.thread_key = %(thread)s
  AND p.no = ANY (ARRAY(SELECT unnest(frozen) FROM c UNION SELECT unnest(frozen) FROM w));

-- name: get_one
-- One checkpoint by its id.
WITH c AS MATERIALIZED (
    SELECT checkpoint_id, parent_id, ns, frozen, head FROM haive.checkpoint
    WHERE thread_key = %(thread)s AND ns_key = %(ns_key)s AND checkpoint_id = %(id)s
), w AS MATERIALIZED (
    SELECT w.checkpoint_id, w.no, w.frozen, w.payload
    FROM c CROSS JOIN LATERAL (
        SELECT checkpoint_id, no, frozen, payload FROM haive.pending_write
        WHERE thread_key = %(thread)s AND ns_key = %(ns_key)s AND checkpoint_id = c.checkpoint_id
        OFFSET 0) AS w
)
SELECT 't', NULL::bytea, t.epoch, NULL::bytea, NULL::text, NULL::bytea FROM haive.thread t WHERE t.thread_key = %(thread)s
UNION ALL SELECT 'c', checkpoint_id, 0, parent_id, ns, head FROM c
UNION ALL SELECT 'w', checkpoint_id, no, NULL, NULL, payload FROM w
UNION ALL SELECT 'f', NULL, p.no, NULL, NULL, p.payload FROM haive.piece p
WHERE p.thread_key = %(thread)s
  AND p.no = ANY (ARRAY(SELECT unnest(frozen) FROM c UNION SELECT unnest(frozen) FROM w));

-- name: get_ancestors
-- A checkpoint (the latest one if no id is given) and up to `depth` of its ancestors, with their writes.
-- The lateral subqueries keep the planner to the primary key, level by level, without statistics too.
WITH RECURSIVE walk AS (
    (SELECT checkpoint_id, parent_id, ns, frozen, head, 0 AS depth FROM haive.checkpoint
     WHERE thread_key = %(thread)s AND ns_key = %(ns_key)s
       AND (%(id)s::bytea IS NULL OR checkpoint_id = %(id)s)
     ORDER BY checkpoint_id DESC LIMIT 1)
    UNION ALL
    SELECT c.checkpoint_id, c.parent_id, c.ns, c.frozen, c.head, walk.depth + 1
    FROM walk CROSS JOIN LATERAL (
        SELECT checkpoint_id, parent_id, ns, frozen, head FROM haive.checkpoint
        WHERE thread_key = %(thread)s AND ns_key = %(ns_key)s AND checkpoint_id = walk.parent_id
        LIMIT 1) AS c
    WHERE walk.depth < %(depth)s
), w AS MATERIALIZED (
    SELECT w.checkpoint_id, w.no, w.frozen, w.payload
    FROM walk CROSS JOIN LATERAL (
        SELECT checkpoint_id, no, frozen, payload FROM haive.pending_write
        WHERE thread_key = %(thread)s AND ns_key = %(ns_key)s AND checkpoint_id = walk.checkpoint_id
        OFFSET 0) AS w
    WHERE walk.depth > 0
)
SELECT 't', NULL::bytea, t.epoch, NULL::bytea, NULL::text, NULL::bytea FROM haive.thread t WHERE t.thread_key = %(thread)s
UNION ALL SELECT 'c', checkpoint_id, depth, parent_id, ns, head FROM walk
UNION ALL SELECT 'w', checkpoint_id, no, NULL, NULL, payload FROM w
UNION ALL SELECT 'f', NULL, p.no, NULL, NULL, p.payload FROM haive.piece p
WHERE p.thread_key = %(thread)s
  AND p.no = ANY (ARRAY(SELECT unnest(frozen) FROM walk UNION SELECT unnest(frozen) FROM w));

-- name: pieces
-- Pieces by number, if the thread is still at this epoch.
SELECT p.no, p.payload
FROM haive.thread t
JOIN haive.piece p ON p.thread_key = t.thread_key
WHERE t.thread_key = %(thread)s AND t.epoch = %(epoch)s AND p.no = ANY (%(numbers)s::bigint[]);

-- name: piece_ranges
-- Pieces by ranges of numbers [start, end), if the thread is still at this epoch.
SELECT p.no, p.payload
FROM haive.thread t
CROSS JOIN unnest(%(starts)s::bigint[], %(ends)s::bigint[]) AS r (start, stop)
JOIN haive.piece p ON p.thread_key = t.thread_key AND p.no >= r.start AND p.no < r.stop
WHERE t.thread_key = %(thread)s AND t.epoch = %(epoch)s;

-- The listing queries have the thread's key and the namespace's key in each row besides; the
-- checkpoints come last, in order.

-- name: list_namespace
-- A page of one namespace's checkpoints, newest first: the order of the primary key.
WITH page AS MATERIALIZED (
    SELECT thread_key, ns_key, checkpoint_id, parent_id, ns, frozen, head FROM haive.checkpoint
    WHERE thread_key = %(thread)s AND ns_key = %(ns_key)s
      AND (%(before)s::bytea IS NULL OR checkpoint_id < %(before)s)
      AND (%(after_id)s::bytea IS NULL OR checkpoint_id < %(after_id)s)
      AND (%(labels)s::jsonb IS NULL OR labels IS NULL OR labels @> %(labels)s::jsonb
           OR NOT labels ?& ARRAY(SELECT jsonb_object_keys(%(labels)s::jsonb)))
    ORDER BY checkpoint_id DESC LIMIT %(limit)s
), w AS MATERIALIZED (
    SELECT w.thread_key, w.ns_key, w.checkpoint_id, w.no, w.frozen, w.payload
    FROM page CROSS JOIN LATERAL (
        SELECT * FROM haive.pending_write
        WHERE thread_key = page.thread_key AND ns_key = page.ns_key AND checkpoint_id = page.checkpoint_id
        OFFSET 0) AS w
), f AS (
    SELECT DISTINCT thread_key, unnest(frozen) AS no FROM (
        SELECT thread_key, frozen FROM page UNION ALL SELECT thread_key, frozen FROM w) AS named
)
SELECT 't', t.thread_key, NULL::bigint, NULL::bytea, t.epoch, NULL::bytea, t.thread_id, NULL::bytea
FROM haive.thread t WHERE t.thread_key IN (SELECT thread_key FROM page)
UNION ALL SELECT 'f', f.thread_key, NULL, NULL, f.no, NULL, NULL, p.payload
FROM f JOIN haive.piece p ON p.thread_key = f.thread_key AND p.no = f.no
UNION ALL SELECT 'w', thread_key, ns_key, checkpoint_id, no, NULL, NULL, payload FROM w
UNION ALL (SELECT 'c', thread_key, ns_key, checkpoint_id, 0, parent_id, ns, head FROM page ORDER BY checkpoint_id DESC);

-- name: list_thread
-- A page of one thread's checkpoints, newest first.
WITH page AS MATERIALIZED (
    SELECT thread_key, ns_key, checkpoint_id, parent_id, ns, frozen, head FROM haive.checkpoint
    WHERE thread_key = %(thread)s
      AND (%(before)s::bytea IS NULL OR checkpoint_id < %(before)s)
      AND (%(after_id)s::bytea IS NULL OR (checkpoint_id, ns_key) < (%(after_id)s, %(after_ns)s::bigint))
      AND (%(labels)s::jsonb IS NULL OR labels IS NULL OR labels @> %(labels)s::jsonb
           OR NOT labels ?& ARRAY(SELECT jsonb_object_keys(%(labels)s::jsonb)))
    ORDER BY checkpoint_id DESC, ns_key DESC LIMIT %(limit)s
), w AS MATERIALIZED (
    SELECT w.thread_key, w.ns_key, w.checkpoint_id, w.no, w.frozen, w.payload
    FROM page CROSS JOIN LATERAL (
        SELECT * FROM haive.pending_write
        WHERE thread_key = page.thread_key AND ns_key = page.ns_key AND checkpoint_id = page.checkpoint_id
        OFFSET 0) AS w
), f AS (
    SELECT DISTINCT thread_key, unnest(frozen) AS no FROM (
        SELECT thread_key, frozen FROM page UNION ALL SELECT thread_key, frozen FROM w) AS named
)
SELECT 't', t.thread_key, NULL::bigint, NULL::bytea, t.epoch, NULL::bytea, t.thread_id, NULL::bytea
FROM haive.thread t WHERE t.thread_key IN (SELECT thread_key FROM page)
UNION ALL SELECT 'f', f.thread_key, NULL, NULL, f.no, NULL, NULL, p.payload
FROM f JOIN haive.piece p ON p.thread_key = f.thread_key AND p.no = f.no
UNION ALL SELECT 'w', thread_key, ns_key, checkpoint_id, no, NULL, NULL, payload FROM w
UNION ALL (SELECT 'c', thread_key, ns_key, checkpoint_id, 0, parent_id, ns, head FROM page ORDER BY checkpoint_id DESC, ns_key DESC);

-- name: list_one
-- One checkpoint in whichever namespaces of a thread have it.
WITH page AS MATERIALIZED (
    SELECT thread_key, ns_key, checkpoint_id, parent_id, ns, frozen, head FROM haive.checkpoint
    WHERE thread_key = %(thread)s AND checkpoint_id = %(id)s
      AND (%(ns_key)s::bigint IS NULL OR ns_key = %(ns_key)s)
      AND (%(before)s::bytea IS NULL OR checkpoint_id < %(before)s)
      AND (%(after_id)s::bytea IS NULL OR ns_key < %(after_ns)s::bigint)
      AND (%(labels)s::jsonb IS NULL OR labels IS NULL OR labels @> %(labels)s::jsonb
           OR NOT labels ?& ARRAY(SELECT jsonb_object_keys(%(labels)s::jsonb)))
    ORDER BY ns_key DESC LIMIT %(limit)s
), w AS MATERIALIZED (
    SELECT w.thread_key, w.ns_key, w.checkpoint_id, w.no, w.frozen, w.payload
    FROM page CROSS JOIN LATERAL (
        SELECT * FROM haive.pending_write
        WHERE thread_key = page.thread_key AND ns_key = page.ns_key AND checkpoint_id = page.checkpoint_id
        OFFSET 0) AS w
), f AS (
    SELECT DISTINCT thread_key, unnest(frozen) AS no FROM (
        SELECT thread_key, frozen FROM page UNION ALL SELECT thread_key, frozen FROM w) AS named
)
SELECT 't', t.thread_key, NULL::bigint, NULL::bytea, t.epoch, NULL::bytea, t.thread_id, NULL::bytea
FROM haive.thread t WHERE t.thread_key IN (SELECT thread_key FROM page)
UNION ALL SELECT 'f', f.thread_key, NULL, NULL, f.no, NULL, NULL, p.payload
FROM f JOIN haive.piece p ON p.thread_key = f.thread_key AND p.no = f.no
UNION ALL SELECT 'w', thread_key, ns_key, checkpoint_id, no, NULL, NULL, payload FROM w
UNION ALL (SELECT 'c', thread_key, ns_key, checkpoint_id, 0, parent_id, ns, head FROM page ORDER BY ns_key DESC);

-- name: list_all
-- A page of all the tenant's checkpoints, newest first.
WITH page AS MATERIALIZED (
    SELECT thread_key, ns_key, checkpoint_id, parent_id, ns, frozen, head FROM haive.checkpoint
    WHERE (%(before)s::bytea IS NULL OR checkpoint_id < %(before)s)
      AND (%(after_id)s::bytea IS NULL
           OR (checkpoint_id, thread_key, ns_key) < (%(after_id)s, %(after_thread)s::uuid, %(after_ns)s::bigint))
      AND (%(labels)s::jsonb IS NULL OR labels IS NULL OR labels @> %(labels)s::jsonb
           OR NOT labels ?& ARRAY(SELECT jsonb_object_keys(%(labels)s::jsonb)))
    ORDER BY checkpoint_id DESC, thread_key DESC, ns_key DESC LIMIT %(limit)s
), w AS MATERIALIZED (
    SELECT w.thread_key, w.ns_key, w.checkpoint_id, w.no, w.frozen, w.payload
    FROM page CROSS JOIN LATERAL (
        SELECT * FROM haive.pending_write
        WHERE thread_key = page.thread_key AND ns_key = page.ns_key AND checkpoint_id = page.checkpoint_id
        OFFSET 0) AS w
), f AS (
    SELECT DISTINCT thread_key, unnest(frozen) AS no FROM (
        SELECT thread_key, frozen FROM page UNION ALL SELECT thread_key, frozen FROM w) AS named
)
SELECT 't', t.thread_key, NULL::bigint, NULL::bytea, t.epoch, NULL::bytea, t.thread_id, NULL::bytea
FROM haive.thread t WHERE t.thread_key IN (SELECT thread_key FROM page)
UNION ALL SELECT 'f', f.thread_key, NULL, NULL, f.no, NULL, NULL, p.payload
FROM f JOIN haive.piece p ON p.thread_key = f.thread_key AND p.no = f.no
UNION ALL SELECT 'w', thread_key, ns_key, checkpoint_id, no, NULL, NULL, payload FROM w
UNION ALL (SELECT 'c', thread_key, ns_key, checkpoint_id, 0, parent_id, ns, head FROM page ORDER BY checkpoint_id DESC, thread_key DESC, ns_key DESC);

-- name: delete_thread
-- The thread's row first: it waits for the statements that hold it, and later ones find no thread.
DELETE FROM haive.thread WHERE thread_key = ANY (%(threads)s::uuid[]);

-- name: delete_checkpoints_of
-- All checkpoints of some threads.
DELETE FROM haive.checkpoint WHERE thread_key = ANY (%(threads)s::uuid[]);

-- name: delete_writes_of
-- All pending writes of some threads.
DELETE FROM haive.pending_write WHERE thread_key = ANY (%(threads)s::uuid[]);

-- name: delete_pieces_of
-- All pieces of some threads.
DELETE FROM haive.piece WHERE thread_key = ANY (%(threads)s::uuid[]);

-- name: lock_thread
-- Take the thread for ourselves until the transaction ends.
SELECT epoch FROM haive.thread WHERE thread_key = %(thread)s FOR UPDATE;

-- name: next_epoch
-- Make what others know of the thread stale.
UPDATE haive.thread SET epoch = %(epoch)s WHERE thread_key = %(thread)s;

-- name: all_heads
-- Every checkpoint of a thread, newest first.
SELECT ns_key, checkpoint_id, parent_id, ns, frozen, head FROM haive.checkpoint
WHERE thread_key = %(thread)s ORDER BY ns_key, checkpoint_id DESC;

-- name: all_writes
-- Every pending write of a thread.
SELECT ns_key, checkpoint_id, no, frozen, payload FROM haive.pending_write WHERE thread_key = %(thread)s;

-- name: all_frozen
-- The frozen sequences a thread's checkpoints and writes name.
SELECT p.no, p.payload FROM haive.piece p
WHERE p.thread_key = %(thread)s AND p.no = ANY (ARRAY(
    SELECT unnest(frozen) FROM haive.checkpoint WHERE thread_key = %(thread)s
    UNION SELECT unnest(frozen) FROM haive.pending_write WHERE thread_key = %(thread)s));

-- name: all_pieces
-- Every piece of a thread.
SELECT no, payload FROM haive.piece WHERE thread_key = %(thread)s ORDER BY no;

-- name: delete_checkpoints
-- Some checkpoints, given as parallel arrays of their keys.
DELETE FROM haive.checkpoint c USING unnest(%(ns_keys)s::bigint[], %(ids)s::bytea[]) AS k (ns_key, checkpoint_id)
WHERE c.thread_key = %(thread)s AND c.ns_key = k.ns_key AND c.checkpoint_id = k.checkpoint_id;

-- name: delete_writes
-- The pending writes of some checkpoints.
DELETE FROM haive.pending_write w USING unnest(%(ns_keys)s::bigint[], %(ids)s::bytea[]) AS k (ns_key, checkpoint_id)
WHERE w.thread_key = %(thread)s AND w.ns_key = k.ns_key AND w.checkpoint_id = k.checkpoint_id;

-- name: forget_parents
-- Checkpoints whose parent is gone are roots now.
UPDATE haive.checkpoint c SET parent_id = NULL
WHERE c.thread_key = %(thread)s AND c.parent_id IS NOT NULL AND NOT EXISTS (
    SELECT 1 FROM haive.checkpoint p
    WHERE p.thread_key = c.thread_key AND p.ns_key = c.ns_key AND p.checkpoint_id = c.parent_id);

-- name: delete_pieces_outside
-- The pieces that no kept checkpoint or write uses.
DELETE FROM haive.piece WHERE thread_key = %(thread)s AND NOT no <@ %(live)s::int8multirange;

-- name: threads_of_runs
-- The threads that may have checkpoints of some runs (the key is a hash: look into the metadata to be sure).
SELECT DISTINCT thread_key FROM haive.checkpoint WHERE run_key = ANY (%(run_keys)s::bigint[]);

-- name: copy_thread_row
-- The target thread's row, if it is not there.
INSERT INTO haive.thread (thread_key, epoch, tenant_id, thread_id)
VALUES (%(target)s, %(epoch)s, %(tenant)s, %(thread_id)s) ON CONFLICT (thread_key) DO NOTHING;

-- name: copy_pieces
-- A thread's pieces, to another thread.
INSERT INTO haive.piece (thread_key, no, tenant_id, payload)
SELECT %(target)s, no, tenant_id, payload FROM haive.piece WHERE thread_key = %(thread)s
ON CONFLICT (thread_key, no) DO NOTHING;

-- name: copy_checkpoints
-- A thread's checkpoints, to another thread.
INSERT INTO haive.checkpoint (thread_key, ns_key, run_key, checkpoint_id, parent_id, tenant_id, ns, frozen, labels, head)
SELECT %(target)s, ns_key, run_key, checkpoint_id, parent_id, tenant_id, ns, frozen, labels, head
FROM haive.checkpoint WHERE thread_key = %(thread)s
ON CONFLICT (thread_key, ns_key, checkpoint_id) DO UPDATE
SET run_key = excluded.run_key, parent_id = excluded.parent_id, frozen = excluded.frozen,
    labels = excluded.labels, head = excluded.head;

-- name: copy_writes
-- A thread's pending writes, to another thread.
INSERT INTO haive.pending_write (thread_key, ns_key, no, checkpoint_id, tenant_id, frozen, payload)
SELECT %(target)s, ns_key, no, checkpoint_id, tenant_id, frozen, payload
FROM haive.pending_write WHERE thread_key = %(thread)s
ON CONFLICT (thread_key, ns_key, checkpoint_id, no) DO NOTHING;

-- name: whole_checkpoints
-- Every checkpoint of a thread with all its columns.
SELECT ns_key, run_key, checkpoint_id, parent_id, ns, frozen, labels, head
FROM haive.checkpoint WHERE thread_key = %(thread)s;

-- name: insert_pieces
-- One piece of a copy.
INSERT INTO haive.piece (thread_key, no, tenant_id, payload) VALUES (%(target)s, %(no)s, %(tenant)s, %(payload)s)
ON CONFLICT (thread_key, no) DO NOTHING;

-- name: insert_checkpoints
-- One checkpoint of a copy.
INSERT INTO haive.checkpoint (thread_key, ns_key, run_key, checkpoint_id, parent_id, tenant_id, ns, frozen, labels, head)
VALUES (%(target)s, %(ns_key)s, %(run_key)s, %(id)s, %(parent)s, %(tenant)s, %(ns)s, %(frozen)s, %(labels)s::jsonb, %(head)s)
ON CONFLICT (thread_key, ns_key, checkpoint_id) DO UPDATE
SET run_key = excluded.run_key, parent_id = excluded.parent_id, frozen = excluded.frozen,
    labels = excluded.labels, head = excluded.head;

-- name: insert_writes
-- One pending write of a copy.
INSERT INTO haive.pending_write (thread_key, ns_key, no, checkpoint_id, tenant_id, frozen, payload)
VALUES (%(target)s, %(ns_key)s, %(no)s, %(id)s, %(tenant)s, %(frozen)s, %(payload)s)
ON CONFLICT (thread_key, ns_key, checkpoint_id, no) DO NOTHING;

-- name: data_keys
-- The tenant's wrapped data keys.
SELECT no, wrapped FROM haive.data_key WHERE tenant_id = %(tenant)s ORDER BY no;

-- name: add_data_key
-- A new data key; no row if another process was first.
INSERT INTO haive.data_key (tenant_id, no, wrapped) VALUES (%(tenant)s, %(no)s, %(wrapped)s)
ON CONFLICT (tenant_id, no) DO NOTHING RETURNING 1;

-- name: rewrap_data_key
-- The same data key under another master key.
UPDATE haive.data_key SET wrapped = %(wrapped)s
WHERE tenant_id = %(tenant)s AND no = %(no)s AND wrapped = %(old)s RETURNING 1;
