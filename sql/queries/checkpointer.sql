-- Queries of the checkpointer. Rows of the reading ones share one shape, so that a checkpoint and all
-- that belongs to it come in one round trip:
--   kind 't' thread      number = epoch, payload = what `main` means if it was moved (8 bytes)
--   kind 'c' checkpoint  id, number = depth, other = parent's id, payload = body
--   kind 'w' write       id of its checkpoint, number = write_no, payload
--   kind 's' sequence    number = piece_no, payload: a sequence piece that a checkpoint or write names
--   kind 'p' piece       number = piece_no, payload: one that may be needed

-- Every statement names the tenant, which the policies demand too: a session that a pooler gave to somebody else
-- in between then finds nothing instead of their rows.

-- include: keys

-- The writing ones add to a thread while it is at the epoch they name, and answer with a row; with none if it is not.
-- `statements.py` fills their slots and lists every text that results.

-- part: epoch_now
-- What is remembered of a thread is tied to this: its epoch, in this life of the database.
t.epoch # haive.incarnation(t.tableoid, t.xmin)

-- part: insert_thread
-- slot: data_key_check
-- The thread's row, new. Its epoch is drawn here: a statement that is sent again after its answer was lost must not
-- bring back an epoch that others know, if the thread it made was deleted in between.
INSERT INTO haive.thread AS t (thread_key, epoch, tenant_id, thread_id)
SELECT %(thread)s, hashtextextended(gen_random_uuid()::text, 0), %(tenant)s, %(thread_id)s
WHERE true /* data_key_check */
ON CONFLICT (thread_key) DO NOTHING RETURNING /* epoch_now */ AS epoch

-- part: lock_thread_shared
-- slot: data_key_check
-- slot: nowait
-- FOR SHARE blocks prune and delete until commit. NOWAIT because statements are grouped, and those of other threads
-- share the round trip; on 55P03 the statement is sent again alone, without it.
haive.thread t WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s AND /* epoch_now */ = %(epoch)s
/* data_key_check */ FOR SHARE /* nowait */

-- part: piece_arrays
-- Fills `pieces` if there are many: any number of them.
unnest(%(numbers)s::bigint[], %(payloads)s::bytea[])

-- part: new_pieces
-- slot: pieces
-- Few pieces come as parameters of their own: arrays are slow to send and to open. Number 0 fills up.
INSERT INTO haive.piece (thread_key, piece_no, tenant_id, payload)
SELECT %(thread)s, p.piece_no, %(tenant)s, p.payload
FROM held, /* pieces */ AS p (piece_no, payload) WHERE p.piece_no <> 0

-- part: checkpoint
INSERT INTO haive.checkpoint (thread_key, ns_key, line_no, parent_ns_key, run_key, listing_key, signature_1, signature_2, checkpoint_id, parent_id, tenant_id, sequence_nos, body)
SELECT %(thread)s, %(ns_key)s, %(line_no)s, %(parent_ns_key)s, %(run_key)s, %(listing_key)s, %(signature_1)s, %(signature_2)s, %(id)s, %(parent)s, %(tenant)s, %(sequence_nos)s, %(body)s

-- ON CONFLICT costs 48 bytes of WAL per row, so the grouped statements insert checkpoints and writes without it. A row that is
-- there is sent again alone: its answer was lost, or the checkpoint is put again. Then these parts fill `if_stored`.

-- part: replace_checkpoint
ON CONFLICT (thread_key, ns_key, checkpoint_id) DO UPDATE
SET run_key = excluded.run_key, parent_id = excluded.parent_id, parent_ns_key = excluded.parent_ns_key, sequence_nos = excluded.sequence_nos,
    signature_1 = excluded.signature_1, signature_2 = excluded.signature_2, body = excluded.body

-- part: replace_write
ON CONFLICT (thread_key, checkpoint_id, write_no) DO UPDATE SET payload = excluded.payload

-- part: pending_write
INSERT INTO haive.pending_write (thread_key, ns_key, write_no, checkpoint_id, tenant_id, sequence_nos, payload)
SELECT %(thread)s, %(ns_key)s, %(write_no)s, %(id)s, %(tenant)s, %(sequence_nos)s, %(payload)s

-- name: create_and_put
-- plan: generic
-- The first checkpoint of a thread, its pieces and the thread's row; its epoch, or no row if the thread is there.
WITH held AS (/* insert_thread */), pieces AS (/* new_pieces */)
/* checkpoint */ FROM held RETURNING (SELECT epoch FROM held);

-- name: put
-- plan: generic
-- slot: if_stored
-- A checkpoint and its pieces, in a number block not confirmed yet: a piece that is there already is an error.
WITH held AS MATERIALIZED (SELECT 1 FROM /* lock_thread_shared */), pieces AS (/* new_pieces */)
/* checkpoint */ FROM held /* if_stored */ RETURNING 1;

-- name: put_shared
-- plan: generic
-- slot: if_stored
-- The same in a confirmed number block: another statement of this process may have sent a piece already.
WITH held AS MATERIALIZED (SELECT 1 FROM /* lock_thread_shared */), pieces AS (/* new_pieces */ ON CONFLICT (thread_key, piece_no) DO NOTHING)
/* checkpoint */ FROM held /* if_stored */ RETURNING 1;

-- name: put_bare
-- plan: generic
-- slot: if_stored
-- The same without pieces.
/* checkpoint */ FROM /* lock_thread_shared */ /* if_stored */ RETURNING 1;

-- name: create_and_write
-- plan: generic
-- Pending writes that arrive before their thread's first checkpoint.
WITH held AS (/* insert_thread */), pieces AS (/* new_pieces */)
/* pending_write */ FROM held RETURNING (SELECT epoch FROM held);

-- name: write
-- plan: generic
-- A task's pending writes and their pieces, in a number block not confirmed yet.
WITH held AS MATERIALIZED (SELECT 1 FROM /* lock_thread_shared */), pieces AS (/* new_pieces */)
/* pending_write */ FROM held RETURNING 1;

-- name: write_shared
-- plan: generic
-- slot: if_stored
-- The same in a confirmed number block.
WITH held AS MATERIALIZED (SELECT 1 FROM /* lock_thread_shared */), pieces AS (/* new_pieces */ ON CONFLICT (thread_key, piece_no) DO NOTHING)
/* pending_write */ FROM held /* if_stored */ RETURNING 1;

-- name: write_bare
-- plan: generic
-- slot: if_stored
-- The same without pieces.
/* pending_write */ FROM /* lock_thread_shared */ /* if_stored */ RETURNING 1;

-- name: epoch
-- plan: generic
-- The thread's epoch, no row if it is not stored.
SELECT /* epoch_now */, main_line FROM haive.thread t WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s;

-- part: writes
-- The pending writes of the checkpoints `c`. LATERAL with OFFSET 0 keeps the planner to the primary key, without statistics too.
SELECT w.checkpoint_id, w.write_no, w.sequence_nos, w.payload
FROM c CROSS JOIN LATERAL (
    SELECT checkpoint_id, write_no, sequence_nos, payload FROM haive.pending_write
    WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s AND ns_key = %(ns_key)s AND checkpoint_id = c.checkpoint_id
    OFFSET 0) AS w

-- part: first_pieces
-- Fills `more` where the process knows nothing of the thread: its first pieces, so that all of a small thread comes in
-- one round trip. They are small, for they may be old: 64 kB at most.
UNION ALL (SELECT 'p', NULL, piece_no, NULL, payload FROM haive.piece
    WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s AND octet_length(payload) <= 2048
    ORDER BY piece_no LIMIT 32)

-- part: rows
-- slot: more
SELECT 't', NULL::bytea, /* epoch_now */, NULL::bytea, int8send(t.main_line) FROM haive.thread t
WHERE t.thread_key = %(thread)s AND t.tenant_id = %(tenant)s
UNION ALL SELECT 'c', checkpoint_id, depth, parent_id, body FROM c
UNION ALL SELECT 'w', checkpoint_id, write_no, NULL, payload FROM w
UNION ALL SELECT 's', NULL, p.piece_no, NULL, p.payload FROM haive.piece p
WHERE p.thread_key = %(thread)s AND p.tenant_id = %(tenant)s
  AND p.piece_no = ANY (ARRAY(SELECT unnest(sequence_nos) FROM c UNION ALL SELECT unnest(sequence_nos) FROM w))
/* more */

-- name: get_latest
-- plan: generic
-- The latest checkpoint of a namespace.
WITH c AS MATERIALIZED (
    SELECT checkpoint_id, parent_id, sequence_nos, body, 0 AS depth FROM haive.checkpoint
    WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s AND ns_key = %(ns_key)s
    ORDER BY checkpoint_id DESC LIMIT 1
), w AS MATERIALIZED (/* writes */)
/* rows */;

-- name: get_one
-- plan: generic
-- One checkpoint by its id.
WITH c AS MATERIALIZED (
    SELECT checkpoint_id, parent_id, sequence_nos, body, 0 AS depth FROM haive.checkpoint
    WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s AND ns_key = %(ns_key)s AND checkpoint_id = %(id)s
), w AS MATERIALIZED (/* writes */)
/* rows */;

-- part: state_of_range
-- One number for the checkpoints from `first` up to `last` and the writes from `first` to before `last`. It differs once a row
-- was replaced, removed or added: each row sets it by a hash of its key and of the transaction that wrote it, so that no
-- changes of several rows cancel out. `first` is above no id of the range.
(SELECT coalesce(bit_xor(hash_record_extended(ROW(checkpoint_id, xmin), 0)), 0) FROM haive.checkpoint
 WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s AND ns_key = %(ns_key)s
   AND checkpoint_id >= range.first AND checkpoint_id < range.last)
# (SELECT coalesce(bit_xor(hash_record_extended(ROW(write_no, xmin), 0)), 0) FROM haive.pending_write
   WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s AND ns_key = %(ns_key)s
     AND checkpoint_id >= range.first AND checkpoint_id < range.last)

-- name: get_ancestors
-- plan: generic
-- A checkpoint (the latest one if no id is given) and up to `depth` of its ancestors, with the ancestors' writes. It ends with
-- the first that is not above `known`, whose ancestors the process has in memory: kind 'f' says whether they are still as
-- they were when it read them, from `oldest` on; kind 'g' is the same of what it reads now.
WITH RECURSIVE c AS (
    (SELECT checkpoint_id, parent_id, sequence_nos, body, 0 AS depth FROM haive.checkpoint
     WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s AND ns_key = %(ns_key)s
       AND (%(id)s::bytea IS NULL OR checkpoint_id = %(id)s)
     ORDER BY checkpoint_id DESC LIMIT 1)
    UNION ALL
    SELECT p.checkpoint_id, p.parent_id, p.sequence_nos, p.body, c.depth + 1
    FROM c CROSS JOIN LATERAL (
        SELECT checkpoint_id, parent_id, sequence_nos, body FROM haive.checkpoint
        WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s AND ns_key = %(ns_key)s AND checkpoint_id = c.parent_id
        LIMIT 1) AS p
    WHERE c.depth < %(depth)s AND c.checkpoint_id > %(known)s
), w AS MATERIALIZED (/* writes */ WHERE c.depth > 0), ends AS MATERIALIZED (
    SELECT (SELECT checkpoint_id FROM c WHERE depth = 0) AS newest,
           (SELECT checkpoint_id FROM c ORDER BY depth DESC LIMIT 1) AS oldest)
/* rows */
UNION ALL SELECT 'f', NULL, /* state_of_range */, NULL, NULL FROM (SELECT %(oldest)s::bytea AS first, %(known)s::bytea AS last) AS range
UNION ALL SELECT 'g', NULL, /* state_of_range */, NULL, NULL FROM (SELECT ends.oldest AS first, ends.newest AS last FROM ends) AS range;

-- name: ancestors_state
-- plan: generic
-- The thread's epoch, and whether a range of checkpoints and writes is as it was.
SELECT /* epoch_now */, /* state_of_range */
FROM haive.thread t, (SELECT %(oldest)s::bytea AS first, %(known)s::bytea AS last) AS range
WHERE t.thread_key = %(thread)s AND t.tenant_id = %(tenant)s;

-- name: pieces
-- plan: generic
-- Pieces by number, if the thread is still at this epoch.
SELECT p.piece_no, p.payload
FROM haive.thread t
JOIN haive.piece p ON p.thread_key = t.thread_key AND p.tenant_id = t.tenant_id
WHERE t.thread_key = %(thread)s AND t.tenant_id = %(tenant)s AND /* epoch_now */ = %(epoch)s
  AND p.piece_no = ANY (%(numbers)s::bigint[]);

-- name: piece_ranges
-- plan: generic
-- Pieces by ranges of numbers [start, end), if the thread is still at this epoch. LATERAL with OFFSET 0: a scan of the
-- index per range, and not every piece of the thread against every range.
SELECT p.piece_no, p.payload
FROM haive.thread t
CROSS JOIN unnest(%(starts)s::bigint[], %(ends)s::bigint[]) AS r (start, stop)
CROSS JOIN LATERAL (
    SELECT piece_no, payload FROM haive.piece
    WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s AND piece_no >= r.start AND piece_no < r.stop
    OFFSET 0) AS p
WHERE t.thread_key = %(thread)s AND t.tenant_id = %(tenant)s AND /* epoch_now */ = %(epoch)s;

-- The listing queries have the thread's key and the namespace's key in each row too, and the thread's id in
-- that of the thread; the checkpoints come last, in the order of the page.

-- part: columns
SELECT thread_key, ns_key, checkpoint_id, line_no, parent_id, sequence_nos, body FROM haive.checkpoint

-- part: has_signature
-- Fills `signature_check` if there is a filter: what has not all these bits does not match. The metadata decides.
-- Few pairs have both halves of their bits in the first column.
AND CASE WHEN signature_2 IS NULL THEN signature_1 & %(signature)s::bigint >= %(signature)s::bigint
    ELSE signature_1 & %(signature_1)s::bigint >= %(signature_1)s::bigint
        AND signature_2 & %(signature_2)s::bigint >= %(signature_2)s::bigint END

-- part: wanted
-- slot: signature_check
-- Older than `before`.
tenant_id = %(tenant)s
  AND (%(before)s::bytea IS NULL OR checkpoint_id < %(before)s) /* signature_check */

-- part: all_of_page
w AS MATERIALIZED (
    SELECT w.thread_key, w.ns_key, w.checkpoint_id, w.write_no, w.sequence_nos, w.payload
    FROM page CROSS JOIN LATERAL (
        SELECT * FROM haive.pending_write
        WHERE thread_key = page.thread_key AND tenant_id = %(tenant)s AND ns_key = page.ns_key AND checkpoint_id = page.checkpoint_id
        OFFSET 0) AS w
), f AS (
    SELECT DISTINCT thread_key, unnest(sequence_nos) AS piece_no FROM (
        SELECT thread_key, sequence_nos FROM page UNION ALL SELECT thread_key, sequence_nos FROM w) AS named
)
SELECT 't', t.thread_key, NULL::bigint, NULL::bytea, /* epoch_now */, NULL::bytea, t.thread_id, int8send(t.main_line)
FROM haive.thread t WHERE t.tenant_id = %(tenant)s AND t.thread_key IN (SELECT thread_key FROM page)
UNION ALL SELECT 's', f.thread_key, NULL, NULL, f.piece_no, NULL, NULL, p.payload
FROM f JOIN haive.piece p ON p.thread_key = f.thread_key AND p.piece_no = f.piece_no AND p.tenant_id = %(tenant)s
UNION ALL SELECT 'w', thread_key, ns_key, checkpoint_id, write_no, NULL, NULL, payload FROM w
UNION ALL (SELECT 'c', thread_key, ns_key, checkpoint_id, COALESCE(line_no, 0), parent_id, NULL, body
           FROM page ORDER BY checkpoint_id DESC, thread_key DESC, ns_key DESC)

-- name: list_namespace
-- A page of one namespace's checkpoints, newest first: the order of the primary key.
WITH page AS MATERIALIZED (
    /* columns */
    WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s AND ns_key = %(ns_key)s AND /* wanted */
      AND (%(after_id)s::bytea IS NULL OR checkpoint_id < %(after_id)s)
    ORDER BY checkpoint_id DESC LIMIT %(limit)s
), /* all_of_page */;

-- name: list_thread
-- A page of one thread's checkpoints, newest first.
WITH page AS MATERIALIZED (
    /* columns */
    WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s AND line_no IS NULL AND /* wanted */
      AND (%(after_id)s::bytea IS NULL OR (checkpoint_id, ns_key) < (%(after_id)s, %(after_ns)s::bigint))
    ORDER BY checkpoint_id DESC, ns_key DESC LIMIT %(limit)s
), /* all_of_page */;

-- name: list_one
-- One checkpoint in whichever namespaces of a thread have it.
WITH page AS MATERIALIZED (
    /* columns */
    WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s AND line_no IS NULL AND checkpoint_id = %(id)s AND /* wanted */
      AND (%(ns_key)s::bigint IS NULL OR ns_key = %(ns_key)s)
      AND (%(after_id)s::bytea IS NULL OR ns_key < %(after_ns)s::bigint)
    ORDER BY ns_key DESC LIMIT %(limit)s
), /* all_of_page */;

-- name: prefer_order
-- Before `list_all`, in its transaction: without it the planner sorts all of a tenant's checkpoints where it takes them for
-- few, which it does before the first ANALYZE and where there are many tenants. Up to Postgres 17 what is off makes a plan look
-- dear, and dear plans are compiled, which takes longer than to run them.
SELECT set_config('enable_sort', 'off', true), set_config('enable_bitmapscan', 'off', true),
    set_config('enable_seqscan', 'off', true), set_config('jit', 'off', true);

-- name: list_all
-- A page of all the tenant's checkpoints, newest first: the order of its index. Of those with the same listing key the
-- id decides, so all of them are read.
WITH page AS MATERIALIZED (
    SELECT thread_key, ns_key, checkpoint_id, line_no, parent_id, sequence_nos, body FROM (
        SELECT * FROM haive.checkpoint
        WHERE /* wanted */ AND listing_key BETWEEN %(first_key)s AND %(last_key)s
          AND (%(after_id)s::bytea IS NULL
               OR (checkpoint_id, thread_key, ns_key) < (%(after_id)s, %(after_thread)s::uuid, %(after_ns)s::bigint))
        ORDER BY listing_key DESC FETCH FIRST (%(limit)s::bigint) ROWS WITH TIES) AS newest
    ORDER BY checkpoint_id DESC, thread_key DESC, ns_key DESC LIMIT %(limit)s
), /* all_of_page */;

-- Six statements delete threads, each with its own snapshot: the first waits for writers that hold the row, and the
-- others see what those committed. A thread may be created again in between; then all of its rows are new, and stay.

-- name: delete_thread
-- The rows of some threads: once they are locked, nothing more is added below them.
DELETE FROM haive.thread WHERE thread_key = ANY (%(threads)s::uuid[]) AND tenant_id = %(tenant)s;

-- part: gone
-- Those of the threads that do not exist now. A scalar subquery: each is looked up by its key, whatever the statistics say.
ANY (ARRAY(
    SELECT k.thread_key FROM unnest(%(threads)s::uuid[]) AS k (thread_key)
    WHERE (SELECT t.thread_key FROM haive.thread t
           WHERE t.thread_key = k.thread_key AND t.tenant_id = %(tenant)s) IS NULL))

-- name: delete_checkpoints_of
-- All checkpoints of the threads that are gone.
DELETE FROM haive.checkpoint WHERE thread_key = /* gone */ AND tenant_id = %(tenant)s;

-- name: delete_writes_of
-- All pending writes of the threads that are gone.
DELETE FROM haive.pending_write WHERE thread_key = /* gone */ AND tenant_id = %(tenant)s;

-- name: delete_refs_of
-- All branches and tags of the threads that are gone.
DELETE FROM haive.ref WHERE thread_key = /* gone */ AND tenant_id = %(tenant)s;

-- name: delete_operations_of
-- The logs of the threads that are gone.
DELETE FROM haive.operation WHERE thread_key = /* gone */ AND tenant_id = %(tenant)s;

-- name: delete_pieces_of
-- All pieces of the threads that are gone.
DELETE FROM haive.piece WHERE thread_key = /* gone */ AND tenant_id = %(tenant)s;

-- name: lock_thread
-- Take the thread for ourselves until the transaction ends.
SELECT /* epoch_now */, main_line FROM haive.thread t WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s FOR UPDATE;

-- name: next_epoch
-- Make what others know of the thread stale.
UPDATE haive.thread SET epoch = %(epoch)s WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s;

-- name: all_checkpoints
-- Every checkpoint of a thread, newest first.
SELECT ns_key, checkpoint_id, parent_id, parent_ns_key, body FROM haive.checkpoint
WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s ORDER BY ns_key, checkpoint_id DESC;

-- name: all_writes
-- Every pending write of a thread.
SELECT ns_key, checkpoint_id, write_no, sequence_nos, payload FROM haive.pending_write
WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s;

-- name: all_sequences
-- The sequence pieces a thread's checkpoints and writes name.
SELECT p.piece_no, p.payload FROM haive.piece p
WHERE p.thread_key = %(thread)s AND p.tenant_id = %(tenant)s AND p.piece_no = ANY (ARRAY(
    SELECT unnest(sequence_nos) FROM haive.checkpoint WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s
    UNION ALL SELECT unnest(sequence_nos) FROM haive.pending_write WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s));

-- name: all_pieces
-- Every piece of a thread.
SELECT piece_no, payload FROM haive.piece WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s ORDER BY piece_no;

-- name: delete_checkpoints
-- Some checkpoints, given as parallel arrays of their keys.
DELETE FROM haive.checkpoint c USING unnest(%(ns_keys)s::bigint[], %(ids)s::bytea[]) AS k (ns_key, checkpoint_id)
WHERE c.thread_key = %(thread)s AND c.tenant_id = %(tenant)s AND c.ns_key = k.ns_key AND c.checkpoint_id = k.checkpoint_id;

-- name: delete_writes
-- The pending writes of some checkpoints.
DELETE FROM haive.pending_write w USING unnest(%(ns_keys)s::bigint[], %(ids)s::bytea[]) AS k (ns_key, checkpoint_id)
WHERE w.thread_key = %(thread)s AND w.tenant_id = %(tenant)s AND w.ns_key = k.ns_key AND w.checkpoint_id = k.checkpoint_id;

-- name: set_parents
-- Checkpoints whose parent is gone get the nearest ancestor that is left, or none. A sealed body says it too: it comes resealed.
UPDATE haive.checkpoint c SET parent_id = k.parent_id, parent_ns_key = k.parent_ns_key, body = COALESCE(k.body, c.body)
FROM unnest(%(child_ns_keys)s::bigint[], %(child_ids)s::bytea[], %(parents)s::bytea[], %(parent_ns_keys)s::bigint[], %(bodies)s::bytea[])
    AS k (ns_key, checkpoint_id, parent_id, parent_ns_key, body)
WHERE c.thread_key = %(thread)s AND c.tenant_id = %(tenant)s AND c.ns_key = k.ns_key AND c.checkpoint_id = k.checkpoint_id;

-- name: delete_pieces_outside
-- The pieces that no kept checkpoint or write uses.
DELETE FROM haive.piece WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s AND NOT piece_no <@ %(live)s::int8multirange;

-- name: threads_of_runs
-- The threads that may have checkpoints of some runs (the key is a hash: look into the metadata to be sure).
SELECT DISTINCT thread_key FROM haive.checkpoint WHERE run_key = ANY (%(run_keys)s::bigint[]) AND tenant_id = %(tenant)s;

-- A copy locks both rows: the source's, so that what it reads is neither pruned nor deleted, and the target's, so that what
-- it adds is not. It reads checkpoints and writes before pieces: what they name was committed before them.

-- name: lock_source
-- The row of the thread to copy; none if it does not exist.
SELECT 1 FROM haive.thread WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s FOR SHARE;

-- name: lock_target
-- The row of the thread to copy to, inserted if it is not there; true if it was.
INSERT INTO haive.thread (thread_key, epoch, tenant_id, thread_id)
VALUES (%(target)s, %(epoch)s, %(tenant)s, %(thread_id)s)
ON CONFLICT (thread_key) DO UPDATE SET epoch = thread.epoch RETURNING xmax::text = '0';

-- name: copy_pieces
-- A thread's pieces, to another thread.
INSERT INTO haive.piece (thread_key, piece_no, tenant_id, payload)
SELECT %(target)s, piece_no, tenant_id, payload FROM haive.piece WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s
ON CONFLICT (thread_key, piece_no) DO NOTHING;

-- name: copy_checkpoints
-- A thread's checkpoints, to another thread.
INSERT INTO haive.checkpoint (thread_key, ns_key, line_no, parent_ns_key, run_key, listing_key, signature_1, signature_2, checkpoint_id, parent_id, tenant_id, sequence_nos, body)
SELECT %(target)s, ns_key, line_no, parent_ns_key, run_key, listing_key, signature_1, signature_2, checkpoint_id, parent_id, tenant_id, sequence_nos, body
FROM haive.checkpoint WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s
/* replace_checkpoint */;

-- name: copy_writes
-- A thread's pending writes, to another thread.
INSERT INTO haive.pending_write (thread_key, ns_key, write_no, checkpoint_id, tenant_id, sequence_nos, payload)
SELECT %(target)s, ns_key, write_no, checkpoint_id, tenant_id, sequence_nos, payload
FROM haive.pending_write WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s
ON CONFLICT (thread_key, checkpoint_id, write_no) DO NOTHING;

-- name: whole_checkpoints
-- Every checkpoint of a thread with all its columns.
SELECT ns_key, line_no, parent_ns_key, run_key, listing_key, signature_1, signature_2, checkpoint_id, parent_id, sequence_nos, body
FROM haive.checkpoint WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s;

-- name: insert_pieces
-- One piece of a copy.
INSERT INTO haive.piece (thread_key, piece_no, tenant_id, payload) VALUES (%(target)s, %(piece_no)s, %(tenant)s, %(payload)s)
ON CONFLICT (thread_key, piece_no) DO NOTHING;

-- name: insert_checkpoints
-- One checkpoint of a copy.
INSERT INTO haive.checkpoint (thread_key, ns_key, line_no, parent_ns_key, run_key, listing_key, signature_1, signature_2, checkpoint_id, parent_id, tenant_id, sequence_nos, body)
VALUES (%(target)s, %(ns_key)s, %(line_no)s, %(parent_ns_key)s, %(run_key)s, %(listing_key)s, %(signature_1)s, %(signature_2)s, %(id)s, %(parent)s, %(tenant)s, %(sequence_nos)s, %(body)s)
/* replace_checkpoint */;

-- name: insert_writes
-- One pending write of a copy.
INSERT INTO haive.pending_write (thread_key, ns_key, write_no, checkpoint_id, tenant_id, sequence_nos, payload)
VALUES (%(target)s, %(ns_key)s, %(write_no)s, %(id)s, %(tenant)s, %(sequence_nos)s, %(payload)s)
ON CONFLICT (thread_key, checkpoint_id, write_no) DO NOTHING;

-- Sealing what was written before the tenant had a key. Sealed bytes begin with 0x80 or more, plaintext with less.
-- `trusted` rows were written before the moment that was recorded when the first key was made.

-- name: plaintext_threads
-- Threads with plaintext, in the order of their keys. OFFSET 0: a look into the primary keys for each thread.
SELECT t.thread_key FROM haive.thread t
WHERE t.tenant_id = %(tenant)s AND t.thread_key > %(after)s
  AND (EXISTS (SELECT FROM haive.checkpoint c WHERE c.thread_key = t.thread_key AND c.tenant_id = %(tenant)s
                 AND substr(c.body, 1, 1) < '\x80' OFFSET 0)
       OR EXISTS (SELECT FROM haive.pending_write w WHERE w.thread_key = t.thread_key AND w.tenant_id = %(tenant)s
                    AND substr(w.payload, 1, 1) < '\x80' OFFSET 0)
       OR EXISTS (SELECT FROM haive.piece p WHERE p.thread_key = t.thread_key AND p.tenant_id = %(tenant)s
                    AND substr(p.payload, 1, 1) < '\x80' OFFSET 0))
ORDER BY t.thread_key LIMIT %(limit)s;

-- name: count_threads
SELECT count(*) FROM haive.thread WHERE tenant_id = %(tenant)s;

-- name: plaintext_pieces
-- The sizes of a thread's pieces in plaintext. All payloads at once might take more memory than there is.
SELECT haive.written_before(xmin, %(moment)s) AS trusted, piece_no, octet_length(payload) FROM haive.piece
WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s AND substr(payload, 1, 1) < '\x80' ORDER BY piece_no;

-- name: some_pieces
-- Some pieces of a thread that is locked.
SELECT piece_no, payload FROM haive.piece
WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s AND piece_no = ANY (%(numbers)s::bigint[]);

-- name: plaintext_writes
-- A thread's pending writes in plaintext.
SELECT haive.written_before(xmin, %(moment)s) AS trusted, ns_key, checkpoint_id, write_no, payload FROM haive.pending_write
WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s AND substr(payload, 1, 1) < '\x80';

-- name: plaintext_checkpoints
-- A thread's checkpoints in plaintext.
SELECT haive.written_before(xmin, %(moment)s) AS trusted, ns_key, checkpoint_id, parent_id, parent_ns_key, body FROM haive.checkpoint
WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s AND substr(body, 1, 1) < '\x80';

-- name: write_numbers
-- The numbers of a thread's pending writes.
SELECT ns_key, checkpoint_id, write_no FROM haive.pending_write
WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s;

-- name: checkpoint_keys
-- The keys of a thread's checkpoints.
SELECT ns_key, checkpoint_id FROM haive.checkpoint WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s;

-- name: seal_pieces
UPDATE haive.piece p SET payload = k.payload
FROM unnest(%(numbers)s::bigint[], %(payloads)s::bytea[]) AS k (piece_no, payload)
WHERE p.thread_key = %(thread)s AND p.tenant_id = %(tenant)s AND p.piece_no = k.piece_no;

-- name: seal_writes
UPDATE haive.pending_write w SET payload = k.payload
FROM unnest(%(ids)s::bytea[], %(numbers)s::bigint[], %(payloads)s::bytea[]) AS k (checkpoint_id, write_no, payload)
WHERE w.thread_key = %(thread)s AND w.tenant_id = %(tenant)s
  AND w.checkpoint_id = k.checkpoint_id AND w.write_no = k.write_no;

-- name: seal_checkpoints
UPDATE haive.checkpoint c
SET body = k.body, run_key = k.run_key, signature_1 = k.signature_1, signature_2 = k.signature_2
FROM unnest(%(ns_keys)s::bigint[], %(ids)s::bytea[], %(bodies)s::bytea[], %(run_keys)s::bigint[],
            %(signatures_1)s::bigint[], %(signatures_2)s::bigint[])
    AS k (ns_key, checkpoint_id, body, run_key, signature_1, signature_2)
WHERE c.thread_key = %(thread)s AND c.tenant_id = %(tenant)s
  AND c.ns_key = k.ns_key AND c.checkpoint_id = k.checkpoint_id;
