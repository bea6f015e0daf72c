-- Queries of the keys: the tenants' wrapped data keys.

-- name: data_keys
-- The tenant's wrapped data keys.
SELECT key_no, wrapped FROM haive.data_key WHERE tenant_id = %(tenant)s ORDER BY key_no;

-- name: add_data_key
-- A new data key; no row if another process was first.
INSERT INTO haive.data_key (tenant_id, key_no, wrapped) VALUES (%(tenant)s, %(key_no)s, %(wrapped)s)
ON CONFLICT (tenant_id, key_no) DO NOTHING RETURNING 1;

-- name: rewrap_data_key
-- The same data key under another master key.
UPDATE haive.data_key SET wrapped = %(wrapped)s
WHERE tenant_id = %(tenant)s AND key_no = %(key_no)s AND wrapped = %(old)s RETURNING 1;
