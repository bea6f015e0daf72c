-- Queries of branches, tags and what a branch shows. A line's key of a namespace is the hash of its name XOR the line's number.

-- include: checkpointer

-- part: ref_columns
r.ref_no, r.name_key, r.base_line, r.home_line, r.checkpoint_id, r.cut_id, r.base_writes, r.is_tag, r.is_passed, r.is_protected, r.is_deleted,
    r.merge_line, r.merge_id, r.created_at, r.payload

-- name: thread_now
-- The thread's epoch, and what `main` means.
SELECT /* epoch_now */, t.main_line FROM haive.thread t WHERE t.thread_key = %(thread)s AND t.tenant_id = %(tenant)s;

-- name: resolve_branch
-- plan: generic
-- A line (by its name's key, or by its number), then the line it starts from, and so on. The line 0 has no row as a rule.
WITH RECURSIVE chain AS (
    SELECT r.*, 0 AS depth FROM haive.ref r
    WHERE r.thread_key = %(thread)s AND r.tenant_id = %(tenant)s AND NOT r.is_tag
      AND CASE WHEN %(line)s::bigint IS NULL THEN r.name_key = %(name_key)s ELSE r.ref_no = %(line)s::bigint END
    UNION ALL
    SELECT r.*, c.depth + 1 FROM chain c JOIN haive.ref r
        ON r.thread_key = %(thread)s AND r.tenant_id = %(tenant)s AND r.ref_no = c.base_line AND NOT r.is_tag
    WHERE c.depth < 10000
)
SELECT /* ref_columns */ FROM chain r ORDER BY depth;

-- The queries of views have rows of one shape, so that one function opens them:
--   kind 't' thread      number = epoch, second = what `main` means
--   kind 'c' checkpoint  number = its parent's ns_key if that is another one, other = parent's id, second = its line,
--                        third = the line that leaves its line here, payload = body
--   kind 'w' write       number = write_no, second = the ns_key of its checkpoint, payload
--   kind 's' sequence    number = piece_no, payload
-- `lines` are those of the view, nearest first. Of each, checkpoints of the graph itself are shown below `root_belows`, those of
-- subgraphs below `belows`; NULL shows all.

-- part: level
level AS MATERIALIZED (
    SELECT line_no, place, CASE WHEN %(ns_key)s::bigint = %(root_key)s::bigint THEN root_below ELSE below END AS below, root_below, below AS other_below
    FROM unnest(%(lines)s::bigint[], %(root_belows)s::bytea[], %(belows)s::bytea[])
        WITH ORDINALITY AS l (line_no, root_below, below, place))

-- part: page_columns
c.ns_key, c.checkpoint_id, c.parent_ns_key, c.parent_id, c.sequence_nos, c.body

-- part: of_page
-- The rows of a `page`. The last checkpoint that is shown of a line but the first is where another line leaves it: the nearest one
-- that has checkpoints of the namespace, or the view's own.
shown AS MATERIALIZED (
    SELECT p.*, CASE WHEN p.place > 1 AND NOT EXISTS (
        SELECT FROM haive.checkpoint n
        WHERE n.thread_key = %(thread)s AND n.tenant_id = %(tenant)s AND n.ns_key = p.ns_key
          AND n.checkpoint_id > p.checkpoint_id AND n.checkpoint_id < p.below)
    THEN COALESCE(
        (SELECT m.line_no FROM level m
         WHERE m.place < p.place AND EXISTS (
            SELECT FROM haive.checkpoint n
            WHERE n.thread_key = %(thread)s AND n.tenant_id = %(tenant)s AND n.ns_key = p.ns_key # p.line_no # m.line_no
              AND (m.place = 1 OR n.checkpoint_id < CASE WHEN p.ns_key # p.line_no = %(root_key)s::bigint THEN m.root_below ELSE m.other_below END))
         ORDER BY m.place DESC LIMIT 1),
        (SELECT line_no FROM level WHERE place = 1)) END AS left_by
    FROM page p
), w AS MATERIALIZED (
    SELECT w.ns_key, w.checkpoint_id, w.write_no, w.sequence_nos, w.payload, p.ns_key AS at_ns_key
    FROM page p CROSS JOIN LATERAL (
        SELECT * FROM haive.pending_write
        WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s AND checkpoint_id = p.checkpoint_id
          AND (ns_key # p.ns_key # p.line_no = ANY (%(lines)s::bigint[]) OR write_no = ANY (%(base_writes)s::bigint[]))
        OFFSET 0) AS w
)
SELECT 't' AS kind, NULL::bigint, NULL::bytea, /* epoch_now */, NULL::bytea, t.main_line, NULL::bigint, NULL::bytea FROM haive.thread t
WHERE t.thread_key = %(thread)s AND t.tenant_id = %(tenant)s
UNION ALL SELECT 's', NULL, NULL, p.piece_no, NULL, NULL, NULL, p.payload FROM haive.piece p
WHERE p.thread_key = %(thread)s AND p.tenant_id = %(tenant)s
  AND p.piece_no = ANY (ARRAY(SELECT unnest(sequence_nos) FROM page UNION ALL SELECT unnest(sequence_nos) FROM w))
UNION ALL SELECT 'w', ns_key, checkpoint_id, write_no, NULL, at_ns_key, NULL, payload FROM w
UNION ALL (SELECT 'c', ns_key, checkpoint_id, parent_ns_key, parent_id, line_no, left_by, body
           FROM shown ORDER BY place, checkpoint_id DESC, ns_key DESC)

-- name: view_namespace
-- plan: generic
-- A page of one namespace as a view shows it: nearest line first, newest first. It goes on after a place in it.
WITH /* level */, page AS MATERIALIZED (
    SELECT c.*, l.line_no, l.place, l.below FROM level l CROSS JOIN LATERAL (
        SELECT /* page_columns */ FROM haive.checkpoint c
        WHERE c.thread_key = %(thread)s AND c.tenant_id = %(tenant)s AND c.ns_key = l.line_no # %(ns_key)s::bigint
          AND (l.below IS NULL OR c.checkpoint_id < l.below) AND (%(id)s::bytea IS NULL OR c.checkpoint_id = %(id)s::bytea)
          AND /* wanted */
          AND (l.place > %(after_place)s::bigint OR l.place = %(after_place)s::bigint AND c.checkpoint_id < %(after_id)s::bytea)
        ORDER BY c.checkpoint_id DESC LIMIT %(limit)s) AS c
    ORDER BY l.place, c.checkpoint_id DESC LIMIT %(limit)s
), /* of_page */;

-- name: view_thread
-- The same of all namespaces.
WITH /* level */, page AS MATERIALIZED (
    SELECT /* page_columns */, l.line_no, l.place, CASE WHEN c.ns_key # l.line_no = %(root_key)s::bigint THEN l.root_below ELSE l.other_below END AS below
    FROM haive.checkpoint c JOIN level l ON l.line_no = COALESCE(c.line_no, 0)
    WHERE c.thread_key = %(thread)s AND c.tenant_id = %(tenant)s
      AND (CASE WHEN c.ns_key # l.line_no = %(root_key)s::bigint THEN l.root_below ELSE l.other_below END IS NULL
           OR c.checkpoint_id < CASE WHEN c.ns_key # l.line_no = %(root_key)s::bigint THEN l.root_below ELSE l.other_below END)
      AND (%(id)s::bytea IS NULL OR c.checkpoint_id = %(id)s::bytea) AND /* wanted */
      AND (l.place > %(after_place)s::bigint OR l.place = %(after_place)s::bigint AND (c.checkpoint_id, c.ns_key) < (%(after_id)s::bytea, %(after_ns)s::bigint))
    ORDER BY l.place, c.checkpoint_id DESC, c.ns_key DESC LIMIT %(limit)s
), /* of_page */;

-- name: view_ancestors
-- plan: generic
-- A checkpoint as a view shows it, and up to `depth` of its ancestors, on whichever of its lines they are.
WITH RECURSIVE /* level */, c AS (
    (SELECT c.*, l.line_no AS on_line, l.place, l.below, 0 AS depth FROM level l CROSS JOIN LATERAL (
        SELECT /* page_columns */ FROM haive.checkpoint c
        WHERE c.thread_key = %(thread)s AND c.tenant_id = %(tenant)s AND c.ns_key = l.line_no # %(ns_key)s::bigint
          AND (l.below IS NULL OR c.checkpoint_id < l.below) AND (%(id)s::bytea IS NULL OR c.checkpoint_id = %(id)s::bytea)
        ORDER BY c.checkpoint_id DESC LIMIT 1) AS c
     ORDER BY l.place LIMIT 1)
    UNION ALL
    SELECT p.*, l.line_no, l.place, l.below, c.depth + 1
    FROM c CROSS JOIN LATERAL (
        SELECT ns_key, checkpoint_id, parent_ns_key, parent_id, sequence_nos, body FROM haive.checkpoint
        WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s AND ns_key = COALESCE(c.parent_ns_key, c.ns_key)
          AND checkpoint_id = c.parent_id
        LIMIT 1) AS p
    JOIN level l ON l.line_no = p.ns_key # %(ns_key)s::bigint
    WHERE c.depth < %(depth)s
), page AS MATERIALIZED (
    SELECT ns_key, checkpoint_id, parent_ns_key, parent_id, sequence_nos, body, on_line AS line_no, place, below FROM c
), /* of_page */;

-- name: line_of_checkpoint
-- The line of a checkpoint of this thread, on whichever it is.
SELECT COALESCE(c.line_no, 0) FROM haive.checkpoint c
WHERE c.listing_key = %(listing_key)s AND c.tenant_id = %(tenant)s AND c.thread_key = %(thread)s AND c.checkpoint_id = %(id)s::bytea
  AND c.ns_key # COALESCE(c.line_no, 0) = %(ns_key)s::bigint ORDER BY c.line_no NULLS FIRST LIMIT 1;

-- name: checkpoints_by_id
-- The checkpoints of an id, in whichever threads of the tenant; those of graphs, not of their subgraphs.
SELECT c.thread_key, t.thread_id, COALESCE(c.line_no, 0), t.main_line
FROM haive.checkpoint c JOIN haive.thread t ON t.thread_key = c.thread_key AND t.tenant_id = %(tenant)s
WHERE c.listing_key = %(listing_key)s AND c.tenant_id = %(tenant)s AND c.checkpoint_id = %(id)s::bytea
  AND c.ns_key # COALESCE(c.line_no, 0) = %(root_key)s::bigint LIMIT 10;

-- part: branch_start
-- The checkpoint at which a branch is to start, by its id or the latest of its line; the id that ends what it shows of subgraphs;
-- whether its line went on; and the pending writes that are shown there: see `Refs.create_branch`.
SELECT s.checkpoint_id, s.cut_id, s.is_passed, ARRAY(
    SELECT w.write_no FROM haive.pending_write w
    WHERE w.thread_key = %(thread)s AND w.tenant_id = %(tenant)s AND w.checkpoint_id >= s.checkpoint_id AND w.checkpoint_id < s.cut_id
      AND (w.checkpoint_id > s.checkpoint_id OR w.ns_key = %(root_key)s::bigint # %(base_line)s::bigint
           OR CASE WHEN %(base_writes)s::bigint[] IS NULL THEN w.ns_key = %(root_key)s::bigint # %(home_line)s::bigint
              ELSE w.write_no = ANY (%(base_writes)s::bigint[]) END)) AS base_writes
FROM (
    SELECT c.checkpoint_id,
        COALESCE((SELECT n.checkpoint_id FROM haive.checkpoint n
                  WHERE n.thread_key = %(thread)s AND n.tenant_id = %(tenant)s AND n.ns_key = %(root_key)s::bigint # %(next_line)s::bigint
                    AND n.checkpoint_id > c.checkpoint_id ORDER BY n.checkpoint_id LIMIT 1),
                 GREATEST(%(now_id)s::bytea, c.checkpoint_id || '\x00')) AS cut_id,
        EXISTS (SELECT FROM haive.checkpoint n
                WHERE n.thread_key = %(thread)s AND n.tenant_id = %(tenant)s AND n.ns_key = %(root_key)s::bigint # %(next_line)s::bigint
                  AND n.checkpoint_id > c.checkpoint_id AND n.parent_id = c.checkpoint_id) AS is_passed
    FROM haive.checkpoint c
    WHERE c.thread_key = %(thread)s AND c.tenant_id = %(tenant)s AND c.ns_key = %(root_key)s::bigint # %(home_line)s::bigint
      AND (%(id)s::bytea IS NULL OR c.checkpoint_id = %(id)s::bytea)
    ORDER BY c.checkpoint_id DESC LIMIT 1) AS s

-- name: start_of_branch
-- plan: generic
/* branch_start */;

-- name: create_branch
-- plan: generic
-- slot: data_key_check
-- A branch, unless its name is used. No row then, nor if there is no such checkpoint or the thread is at another epoch.
WITH held AS MATERIALIZED (SELECT 1 FROM haive.thread t WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s AND /* epoch_now */ = %(epoch)s
    /* data_key_check */ FOR SHARE)
INSERT INTO haive.ref (thread_key, ref_no, name_key, base_line, home_line, is_tag, is_passed, tenant_id, checkpoint_id, cut_id, base_writes, payload)
SELECT %(thread)s, %(ref_no)s, %(name_key)s, %(base_line)s::bigint, %(home_line)s::bigint, false, s.is_passed, %(tenant)s, s.checkpoint_id, s.cut_id, s.base_writes, %(payload)s
FROM held, (/* branch_start */) AS s
WHERE NOT EXISTS (SELECT FROM haive.ref WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s AND name_key = %(name_key)s)
ON CONFLICT (thread_key, ref_no) DO NOTHING
RETURNING checkpoint_id, cut_id, is_passed, base_writes, created_at;

-- name: share_thread
-- The thread's row, held against prune, delete and changes of names until the transaction ends.
SELECT /* epoch_now */, t.main_line FROM haive.thread t WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s FOR SHARE;

-- name: take_thread
-- The same, for ourselves alone.
SELECT /* epoch_now */, t.main_line FROM haive.thread t WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s FOR UPDATE;

-- name: new_epoch
-- Make what others know of the thread stale.
UPDATE haive.thread AS t SET epoch = %(epoch)s WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s RETURNING /* epoch_now */, main_line;

-- name: insert_ref
-- A line with or without a name, or a tag; nothing if it is there.
INSERT INTO haive.ref (thread_key, ref_no, name_key, base_line, home_line, created_at, is_tag, is_protected, is_deleted, is_passed, tenant_id, checkpoint_id, cut_id, base_writes, merge_line, merge_id, payload)
VALUES (%(thread)s, %(ref_no)s, %(name_key)s, %(base_line)s::bigint, %(home_line)s::bigint, COALESCE(%(created_at)s::timestamptz, now()), %(is_tag)s, %(is_protected)s, %(is_deleted)s, %(is_passed)s, %(tenant)s, %(checkpoint_id)s, %(cut_id)s, %(base_writes)s, %(merge_line)s::bigint, %(merge_id)s::bytea, %(payload)s)
ON CONFLICT (thread_key, ref_no) DO NOTHING RETURNING created_at;

-- name: update_ref
UPDATE haive.ref SET name_key = %(name_key)s, is_protected = %(is_protected)s, is_deleted = %(is_deleted)s, payload = %(payload)s
WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s AND ref_no = %(ref_no)s;

-- name: replace_ref
-- What a prune changes.
UPDATE haive.ref SET home_line = %(home_line)s::bigint, checkpoint_id = %(checkpoint_id)s, cut_id = %(cut_id)s, base_writes = %(base_writes)s,
    is_passed = %(is_passed)s, is_deleted = %(is_deleted)s, payload = %(payload)s
WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s AND ref_no = %(ref_no)s;

-- name: plaintext_refs
-- A thread's branches and tags in plaintext.
SELECT haive.written_before(r.xmin, %(moment)s) AS trusted, /* ref_columns */ FROM haive.ref r
WHERE r.thread_key = %(thread)s AND r.tenant_id = %(tenant)s AND substr(r.payload, 1, 1) < '\x80';

-- name: plaintext_operations
-- A thread's log in plaintext.
SELECT haive.written_before(xmin, %(moment)s) AS trusted, operation_id, payload FROM haive.operation
WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s AND substr(payload, 1, 1) < '\x80';

-- name: update_operation
UPDATE haive.operation SET payload = %(payload)s
WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s AND operation_id = %(operation_id)s;

-- name: copy_refs
-- A thread's branches and tags, to another thread. A name that is used there stays as it is: the line is copied without.
INSERT INTO haive.ref (thread_key, ref_no, name_key, base_line, home_line, created_at, is_tag, is_protected, is_deleted, is_passed, tenant_id, checkpoint_id, cut_id, base_writes, merge_line, merge_id, payload)
SELECT %(target)s, r.ref_no, CASE WHEN EXISTS (
        SELECT FROM haive.ref o WHERE o.thread_key = %(target)s AND o.tenant_id = %(tenant)s AND o.name_key = r.name_key) THEN NULL ELSE r.name_key END,
    r.base_line, r.home_line, r.created_at, r.is_tag, r.is_protected, r.is_deleted, r.is_passed, r.tenant_id, r.checkpoint_id, r.cut_id, r.base_writes, r.merge_line, r.merge_id, r.payload
FROM haive.ref r WHERE r.thread_key = %(thread)s AND r.tenant_id = %(tenant)s
ON CONFLICT (thread_key, ref_no) DO NOTHING;

-- name: copy_operations
-- A thread's log, to another thread.
INSERT INTO haive.operation (thread_key, operation_id, at, tenant_id, payload)
SELECT %(target)s, operation_id, at, tenant_id, payload FROM haive.operation WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s
ON CONFLICT (thread_key, operation_id) DO NOTHING;

-- name: copy_main_line
-- What `main` means, to a thread that was made for the copy.
UPDATE haive.thread SET main_line = (SELECT s.main_line FROM haive.thread s WHERE s.thread_key = %(thread)s AND s.tenant_id = %(tenant)s)
WHERE thread_key = %(target)s AND tenant_id = %(tenant)s;

-- name: refs_of_thread
-- Every line and tag of a thread, and the thread's epoch and main line.
SELECT /* ref_columns */ FROM haive.ref r WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s;

-- name: set_main_line
UPDATE haive.thread SET main_line = %(main_line)s WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s;

-- name: record_operation
-- What was done to the names, if the line or tag is there that it made.
INSERT INTO haive.operation (thread_key, operation_id, tenant_id, payload)
SELECT %(thread)s, %(operation_id)s, %(tenant)s, %(payload)s
WHERE EXISTS (SELECT FROM haive.ref WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s AND ref_no = %(ref_no)s)
ON CONFLICT (thread_key, operation_id) DO NOTHING;

-- name: root_checkpoints
-- The checkpoints of the graph itself, on all lines, with their parents.
SELECT COALESCE(line_no, 0), checkpoint_id, COALESCE(parent_ns_key, ns_key) # %(root_key)s::bigint, parent_id FROM haive.checkpoint
WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s AND ns_key # COALESCE(line_no, 0) = %(root_key)s::bigint
ORDER BY checkpoint_id;

-- name: namespaces_of_lines
-- The latest checkpoint of each namespace on some lines, which says the namespace's name.
SELECT DISTINCT ON (c.ns_key # l.line_no) c.ns_key, c.checkpoint_id, c.parent_id, c.body
FROM unnest(%(lines)s::bigint[]) AS l (line_no) JOIN haive.checkpoint c ON COALESCE(c.line_no, 0) = l.line_no
WHERE c.thread_key = %(thread)s AND c.tenant_id = %(tenant)s AND c.ns_key # l.line_no <> %(root_key)s::bigint
ORDER BY c.ns_key # l.line_no, c.checkpoint_id DESC;

-- name: insert_operation
-- One operation of a copy.
INSERT INTO haive.operation (thread_key, operation_id, at, tenant_id, payload)
VALUES (%(thread)s, %(operation_id)s, COALESCE(%(at)s::timestamptz, now()), %(tenant)s, %(payload)s)
ON CONFLICT (thread_key, operation_id) DO NOTHING;

-- name: operation_by_id
SELECT at, payload FROM haive.operation WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s AND operation_id = %(operation_id)s;

-- name: operations_of_thread
SELECT operation_id, at, payload FROM haive.operation WHERE thread_key = %(thread)s AND tenant_id = %(tenant)s ORDER BY operation_id;

-- name: ref_by_name
-- The branch or tag that has a name.
SELECT /* ref_columns */ FROM haive.ref r WHERE r.thread_key = %(thread)s AND r.tenant_id = %(tenant)s AND r.name_key = %(name_key)s;

-- name: ref_by_no
SELECT /* ref_columns */ FROM haive.ref r WHERE r.thread_key = %(thread)s AND r.tenant_id = %(tenant)s AND r.ref_no = %(ref_no)s;

-- name: home_of
-- The checkpoint that a view shows under an id, or its latest, and its line.
WITH /* level */
SELECT c.checkpoint_id, l.line_no FROM level l CROSS JOIN LATERAL (
    SELECT checkpoint_id FROM haive.checkpoint c
    WHERE c.thread_key = %(thread)s AND c.tenant_id = %(tenant)s AND c.ns_key = l.line_no # %(ns_key)s::bigint
      AND (l.below IS NULL OR c.checkpoint_id < l.below) AND (%(id)s::bytea IS NULL OR c.checkpoint_id = %(id)s::bytea)
    ORDER BY c.checkpoint_id DESC LIMIT 1) AS c
ORDER BY l.place LIMIT 1;
