-- Names inside a thread: branches and tags. docs/design/0006-versions.md says why.

-- A line of checkpoints, with the branch's name if it has one, or a tag. The line 0, on which a thread begins, has a row
-- only where it was protected.
CREATE TABLE haive.ref (
    thread_key      uuid NOT NULL,
    -- Of a line, its number: random, 0 for the first one. Of a tag, random.
    ref_no          bigint NOT NULL,
    -- BLAKE2b-64 of the name (keyed where the tenant seals). NULL once a branch was deleted, or its name means another line.
    name_key        bigint,
    -- The line on which the start was seen, and the one on which it is. Of a tag, the line it is on.
    base_line       bigint,
    home_line       bigint,
    -- What was merged where the line starts: the line, and with merge_id the checkpoint.
    merge_line      bigint,
    created_at      timestamptz NOT NULL DEFAULT now(),
    is_tag          boolean NOT NULL,
    is_protected    boolean NOT NULL DEFAULT false,
    -- Of a tag: it names nothing any more, and its name is not used again.
    is_deleted      boolean NOT NULL DEFAULT false,
    -- True if the line it starts from had gone on from there when it was made.
    is_passed       boolean NOT NULL DEFAULT false,
    tenant_id       text COLLATE "C" NOT NULL,
    -- The checkpoint at which the line starts, or that the tag names; as in checkpoint.
    checkpoint_id   bytea,
    -- Checkpoints of subgraphs are shown that are below this.
    cut_id          bytea,
    merge_id        bytea,
    -- The pending writes at the start that are shown.
    base_writes     bigint[],
    -- The name and the caller's metadata; of a sealed tenant, all of the columns above that say what it means, too.
    payload         bytea NOT NULL,
    PRIMARY KEY (thread_key, ref_no)
);
CREATE UNIQUE INDEX ref_name_idx ON haive.ref (thread_key, name_key) WHERE name_key IS NOT NULL;

-- What was done to the names of a thread.
CREATE TABLE haive.operation (
    thread_key   uuid NOT NULL,
    -- A UUID of version 6: the time, by the clock of who did it.
    operation_id uuid NOT NULL,
    at           timestamptz NOT NULL DEFAULT now(),
    tenant_id    text COLLATE "C" NOT NULL,
    -- What, who, why, before and after: versions/operations.py.
    payload      bytea NOT NULL,
    PRIMARY KEY (thread_key, operation_id)
);

ALTER TABLE haive.ref ALTER COLUMN payload SET STORAGE EXTERNAL;
ALTER TABLE haive.operation ALTER COLUMN payload SET STORAGE EXTERNAL;

CALL haive.isolate_tenants('ref');
CALL haive.isolate_tenants('operation');
