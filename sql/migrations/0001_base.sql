-- The ground every later migration stands on: which migrations ran, and how a table is closed
-- to other tenants. The schema itself exists already: the runner creates it.

CREATE TABLE haive.schema_migration (
    version integer PRIMARY KEY,
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);

-- The one table without a tenant. Who may write it is decided by grants alone.
ALTER TABLE haive.schema_migration ENABLE ROW LEVEL SECURITY;
ALTER TABLE haive.schema_migration FORCE ROW LEVEL SECURITY;
CREATE POLICY everyone ON haive.schema_migration USING (true) WITH CHECK (true);

-- Closes a table to every tenant but the current one, its owner included. No setting, no rows.
CREATE PROCEDURE haive.isolate_tenants(table_name text)
LANGUAGE plpgsql
SET search_path = pg_catalog
AS $$
BEGIN
    EXECUTE format('ALTER TABLE haive.%I ENABLE ROW LEVEL SECURITY', table_name);
    EXECUTE format('ALTER TABLE haive.%I FORCE ROW LEVEL SECURITY', table_name);
    EXECUTE format(
        'CREATE POLICY tenant_isolation ON haive.%I'
        ' USING (tenant_id = NULLIF(current_setting(''haive.tenant'', true), ''''))'
        ' WITH CHECK (tenant_id = NULLIF(current_setting(''haive.tenant'', true), ''''))',
        table_name
    );
END
$$;
