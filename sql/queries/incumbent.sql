-- What is looked up of langgraph-checkpoint-postgres, whose tables may be in the same database.

-- name: threads_left_behind
-- True if its tables hold rows while this tenant has no thread; no row if there are no such tables. The size needs no
-- privilege on them.
SELECT pg_relation_size(old.checkpoints) > 0
FROM (SELECT COALESCE(to_regclass('checkpoints'), to_regclass('public.checkpoints')) AS checkpoints,
             COALESCE(to_regclass('checkpoint_blobs'), to_regclass('public.checkpoint_blobs')) AS blobs) AS old
WHERE old.checkpoints IS NOT NULL AND old.blobs IS NOT NULL
  AND NOT EXISTS (SELECT FROM haive.thread WHERE tenant_id = %(tenant)s);
