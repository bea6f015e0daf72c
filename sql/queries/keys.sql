-- Queries of the keys: the tenants' wrapped data keys.

-- part: data_key_is_stored
-- In a statement that writes sealed bytes: only while the data key is stored that seals them.
AND EXISTS (SELECT FROM haive.data_key WHERE tenant_id = %(tenant)s AND key_no = %(key_no)s AND wrapped = %(key)s)

-- part: tenant_accepts_plaintext
-- In a statement that makes rows in plaintext: only while the tenant has no data key.
AND haive.accepts_plaintext(%(tenant)s)

-- part: tenant_has_no_data_key
-- The same for a statement that locks the thread's row at an epoch: making a tenant's first key changes it.
AND NOT EXISTS (SELECT FROM haive.data_key WHERE tenant_id = %(tenant)s)

-- name: data_keys
-- plan: generic
-- The tenant's wrapped data keys.
SELECT key_no, wrapped, plaintext_threads, plaintext_items FROM haive.data_key WHERE tenant_id = %(tenant)s ORDER BY key_no;

-- name: accepts_plaintext
-- Whether the tenant has no data key, and will have none until this transaction ends.
SELECT haive.accepts_plaintext(%(tenant)s);

-- name: lock_data_keys
-- Wait for the statements that make rows in plaintext, of any tenant, and hold new ones back until commit.
LOCK TABLE haive.data_key IN EXCLUSIVE MODE;

-- name: make_epochs_stale
-- What processes remember of the tenant's threads: they ask again whether it accepts plaintext.
UPDATE haive.thread SET epoch = epoch WHERE tenant_id = %(tenant)s;

-- name: plaintext_moment
-- The next transaction, whose it is, and whether the tenant has rows that were written before it. Sent when no
-- statement that writes plaintext is under way.
SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint, haive.cluster_id(),
       EXISTS (SELECT FROM haive.thread WHERE tenant_id = %(tenant)s),
       EXISTS (SELECT FROM haive.store_item WHERE tenant_id = %(tenant)s);

-- name: add_data_key
-- A new data key; no row if another process was first.
INSERT INTO haive.data_key (tenant_id, key_no, wrapped, plaintext_before, plaintext_threads, plaintext_items)
VALUES (%(tenant)s, %(key_no)s, %(wrapped)s, %(plaintext_before)s, %(plaintext_threads)s, %(plaintext_items)s)
ON CONFLICT (tenant_id, key_no) DO NOTHING RETURNING 1;

-- name: recorded_moment
-- The moment before which the tenant's plaintext was written, sealed; this server, and the next transaction.
SELECT key_no, plaintext_before, haive.cluster_id(), pg_snapshot_xmax(pg_current_snapshot())::text::bigint
FROM haive.data_key WHERE tenant_id = %(tenant)s AND plaintext_before IS NOT NULL;

-- name: end_plaintext_threads
-- All threads are sealed.
UPDATE haive.data_key SET plaintext_threads = false WHERE tenant_id = %(tenant)s AND plaintext_threads;

-- name: end_plaintext_items
-- All store items are sealed.
UPDATE haive.data_key SET plaintext_items = false WHERE tenant_id = %(tenant)s AND plaintext_items;

-- name: rewrap_data_key
-- The same data key under another master key.
UPDATE haive.data_key SET wrapped = %(wrapped)s
WHERE tenant_id = %(tenant)s AND key_no = %(key_no)s AND wrapped = %(old)s RETURNING 1;
