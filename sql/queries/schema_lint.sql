-- What is wrong with a schema: each query returns (object, finding) rows, and none when all is well.
-- They read the catalogue of the schema %(schema)s only.

-- name: isolation_tables
-- Tables that are not closed to other tenants.
SELECT t.relname::text, finding
FROM pg_class t
LEFT JOIN pg_attribute a ON a.attrelid = t.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped
LEFT JOIN pg_collation c ON c.oid = a.attcollation
CROSS JOIN LATERAL unnest(ARRAY[
    CASE WHEN NOT t.relrowsecurity THEN 'row-level security is not enabled' END,
    CASE WHEN NOT t.relforcerowsecurity THEN 'row-level security is not forced on the owner' END,
    CASE WHEN t.relname <> 'schema_migration' AND (a.atttypid IS DISTINCT FROM 'text'::regtype
              OR NOT a.attnotnull OR c.collname IS DISTINCT FROM 'C')
         THEN 'there is no column tenant_id text COLLATE "C" NOT NULL' END,
    CASE WHEN t.relname <> 'schema_migration' AND NOT EXISTS (
              SELECT FROM pg_policy p WHERE p.polrelid = t.oid AND p.polpermissive)
         THEN 'there is no policy' END
]) AS finding
WHERE t.relnamespace = %(schema)s::regnamespace AND t.relkind IN ('r', 'p') AND finding IS NOT NULL;

-- name: isolation_policies
-- Policies that let through more than the tenant's own rows: any permissive one is enough to.
SELECT t.relname || '.' || p.polname, 'the policy lets through more than the rows of the current tenant'
FROM pg_policy p
JOIN pg_class t ON t.oid = p.polrelid
WHERE t.relnamespace = %(schema)s::regnamespace AND t.relname <> 'schema_migration' AND p.polpermissive
  AND NOT (
      p.polcmd = '*'
      AND pg_get_expr(p.polqual, p.polrelid) = %(rule)s
      AND COALESCE(pg_get_expr(p.polwithcheck, p.polrelid), pg_get_expr(p.polqual, p.polrelid)) = %(rule)s
  );

-- name: isolation_detours
-- Ways around the policies: what runs as its owner, copies of rows, rights the policies do not limit.
SELECT v.relname::text, 'the view reads as its owner: WITH (security_invoker = true)'
FROM pg_class v
WHERE v.relnamespace = %(schema)s::regnamespace AND v.relkind = 'v'
  AND NOT COALESCE(v.reloptions::text[] && ARRAY['security_invoker=true', 'security_invoker=on', 'security_invoker=1'], false)
UNION ALL
SELECT v.relname::text, 'a materialized view has no policies'
FROM pg_class v
WHERE v.relnamespace = %(schema)s::regnamespace AND v.relkind = 'm'
UNION ALL
SELECT f.proname::text, 'the routine runs as its owner (SECURITY DEFINER)'
FROM pg_proc f
WHERE f.pronamespace = %(schema)s::regnamespace AND f.prosecdef
UNION ALL
SELECT DISTINCT t.relname || ' to ' || COALESCE(r.rolname, 'PUBLIC'), 'the right ' || g.privilege_type || ' is not limited by policies'
FROM pg_class t
CROSS JOIN LATERAL aclexplode(t.relacl) g
LEFT JOIN pg_roles r ON r.oid = g.grantee
WHERE t.relnamespace = %(schema)s::regnamespace AND t.relkind IN ('r', 'p')
  AND g.grantee <> t.relowner AND g.privilege_type IN ('TRUNCATE', 'REFERENCES', 'TRIGGER')
UNION ALL
SELECT r.rolname::text, 'the role that tenants are served as can bypass policies or log in'
FROM pg_roles r
WHERE r.rolname = %(role)s
  AND (r.rolbypassrls OR r.rolsuper OR r.rolcanlogin OR EXISTS (
      SELECT FROM pg_auth_members m JOIN pg_roles o ON o.oid = m.roleid
      WHERE m.member = r.oid AND (o.rolbypassrls OR o.rolsuper)));

-- name: distribution
-- What Citus would refuse. A table is distributed by the first column of its primary key; tables
-- without a primary key and without tenants are copied to every node.
WITH d AS (
    SELECT t.oid AS tab, t.relname::text AS name, a.attname AS col, a.attnum AS num, a.atttypid AS kind, a.attnotnull AS filled
    FROM pg_class t
    JOIN pg_index i ON i.indrelid = t.oid AND i.indisprimary
    JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = i.indkey[0]
    WHERE t.relnamespace = %(schema)s::regnamespace AND t.relkind IN ('r', 'p') AND NOT t.relispartition
      AND t.relname <> 'schema_migration'
), tables AS (
    SELECT t.oid AS tab, t.relname::text AS name
    FROM pg_class t
    WHERE t.relnamespace = %(schema)s::regnamespace AND t.relkind IN ('r', 'p') AND NOT t.relispartition
      AND t.relname <> 'schema_migration'
)
SELECT name, 'there is no primary key: its shards could not be moved while they are written' FROM tables
WHERE tab NOT IN (SELECT tab FROM d)
UNION ALL
SELECT name, 'the distribution column ' || col || ' is neither thread_key uuid nor tenant_id text' FROM d
WHERE NOT (col = 'thread_key' AND kind = 'uuid'::regtype OR col = 'tenant_id' AND kind = 'text'::regtype)
UNION ALL
SELECT x.relname::text, 'the unique index lacks the distribution column ' || d.col
FROM pg_index i JOIN d ON d.tab = i.indrelid JOIN pg_class x ON x.oid = i.indexrelid
WHERE (i.indisunique OR i.indisexclusion) AND NOT d.num = ANY (i.indkey::int2[])
UNION ALL
SELECT c.conname::text, 'the foreign key does not pair the distribution columns of both tables'
FROM pg_constraint c JOIN d f ON f.tab = c.conrelid JOIN d t ON t.tab = c.confrelid
WHERE c.contype = 'f' AND NOT EXISTS (SELECT FROM unnest(c.conkey, c.confkey) u (k, v) WHERE u.k = f.num AND u.v = t.num)
UNION ALL
SELECT c.conname::text, 'the foreign key leads to a table that is not distributed'
FROM pg_constraint c JOIN d f ON f.tab = c.conrelid
WHERE c.contype = 'f' AND c.confrelid NOT IN (SELECT tab FROM d)
UNION ALL
SELECT c.conname::text, 'the foreign key would set the distribution column'
FROM pg_constraint c JOIN d f ON f.tab = c.conrelid
WHERE c.contype = 'f' AND (c.confdeltype IN ('n', 'd') OR c.confupdtype IN ('n', 'd', 'c'))
UNION ALL
SELECT tables.name || '.' || g.tgname, 'triggers are refused'
FROM pg_trigger g JOIN tables ON tables.tab = g.tgrelid
WHERE NOT g.tgisinternal
UNION ALL
SELECT tables.name || '.' || a.attname, 'the column draws from a sequence, which every shard would have to ask for'
FROM tables JOIN pg_attribute a ON a.attrelid = tables.tab AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_attrdef e ON e.adrelid = tables.tab AND e.adnum = a.attnum
WHERE a.attidentity <> '' OR pg_get_expr(e.adbin, e.adrelid) LIKE 'nextval(%%';
