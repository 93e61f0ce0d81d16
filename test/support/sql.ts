// What tests of the SQL side need: errors as values, other roles, sessions that wait for each other, and a
// database as the first application had it before pg-lighter.
import { randomUUID } from 'node:crypto'
import pg from 'pg'
import { until } from './environment.ts'

export interface SqlError {
  code: string
  message: string
  hint: string | undefined
}

/** The error with which the promise must fail. Of ours and of Postgres's both: each has code, message, hint. */
export async function errorOf(promise: Promise<unknown>): Promise<SqlError> {
  const error = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  )
  if (!(error instanceof Error)) throw new Error('it succeeded, an error was expected')
  if (!('code' in error) || typeof error.code !== 'string') throw error
  const hint = 'hint' in error && typeof error.hint === 'string' ? error.hint : undefined
  return { code: error.code, message: error.message, hint }
}

export async function connect(url: string): Promise<pg.Client> {
  const client = new pg.Client({ connectionString: url })
  client.on('error', () => undefined) // the database may be dropped under it
  await client.connect()
  return client
}

/** Runs `work` in one transaction of the role, without being able to become more than that role. */
export async function asRole<T>(
  pool: pg.Pool,
  role: string,
  work: (db: pg.PoolClient) => Promise<T>,
): Promise<T> {
  const db = await pool.connect()
  try {
    await db.query('begin')
    await db.query(`set local role ${pg.escapeIdentifier(role)}`)
    const result = await work(db)
    await db.query('commit')
    return result
  } catch (error) {
    await db.query('rollback')
    throw error
  } finally {
    db.release()
  }
}

export async function backendPid(db: Pick<pg.Client, 'query'>): Promise<number> {
  const { rows } = await db.query<{ pid: number }>('select pg_backend_pid() as pid')
  if (rows[0] === undefined) throw new Error('no backend')
  return rows[0].pid
}

/** Waits until the backend waits for a lock, so that what blocks it can be let go. */
export function untilBlocked(watcher: Pick<pg.Pool, 'query'>, pid: number): Promise<void> {
  return until(async () => {
    const { rows } = await watcher.query(
      `select from pg_stat_activity where pid = $1 and wait_event_type = 'Lock'`,
      [pid],
    )
    return rows.length === 1
  }, `backend ${pid} waits for a lock`)
}

/** One column of the answer. */
export async function column<T>(
  db: Pick<pg.Pool | pg.Client, 'query'>,
  sql: string,
  values: unknown[] = [],
): Promise<T[]> {
  const { rows } = await db.query<T[]>({ text: sql, values, rowMode: 'array' })
  return rows.map(row => row[0] as T)
}

/** The one value that is the answer. */
export async function value<T>(
  db: Pick<pg.Pool | pg.Client, 'query'>,
  sql: string,
  values: unknown[] = [],
): Promise<T> {
  const found = await column<T>(db, sql, values)
  if (found.length !== 1) throw new Error(`one row was expected, not ${found.length}`)
  return found[0] as T
}

/** A role name that no other test has; roles are the whole server's. */
export const uniqueRole = (what: string) => `${what}_${randomUUID().slice(0, 8)}`

/**
 * The three roles of a Supabase project, as far as they are missing. They belong to the whole server, other
 * tests may make them at the same time, and they stay.
 */
export async function ensureSupabaseRoles(superuser: Pick<pg.Pool | pg.Client, 'query'>): Promise<void> {
  for (const [role, attributes] of [
    ['anon', ''],
    ['authenticated', ''],
    ['service_role', 'bypassrls'],
  ]) {
    await superuser.query(`do $$ begin
      if not exists (select from pg_roles where rolname = '${role}') then
        create role ${role} nologin noinherit ${attributes};
      end if;
    exception when duplicate_object or unique_violation then null; end $$`)
  }
}

/** What Supabase grants on whatever the role makes in schema public from now on. */
export async function grantLikeSupabase(
  superuser: Pick<pg.Pool | pg.Client, 'query'>,
  owner: string,
): Promise<void> {
  const ownerSql = pg.escapeIdentifier(owner)
  await superuser.query('grant usage on schema public to anon, authenticated, service_role')
  for (const objects of ['tables', 'functions', 'sequences']) {
    await superuser.query(
      `alter default privileges for role ${ownerSql} in schema public grant all on ${objects} to anon, authenticated, service_role`,
    )
  }
}

/** The tables of the first application, made by the role that runs this, with row-level security and no policy for us. */
export const originalTables = (options: { tenantColumn: boolean }) => `
  create table public.conversations (
    id uuid primary key default gen_random_uuid(),
    tenant_id uuid not null,
    created_at timestamptz not null default now()
  );
  create table public.conversation_messages (
    id uuid primary key default gen_random_uuid(),
    conversation_id uuid not null references public.conversations on delete cascade,
    ${options.tenantColumn ? 'tenant_id uuid not null,' : ''}
    role text not null,
    content text not null,
    metadata jsonb default '{}',
    created_at timestamptz not null default now()
  );
  alter table public.conversations enable row level security;
  alter table public.conversation_messages enable row level security;
`

/** The original migration of artifact_refs. Its policy names service_role, as intended. */
export const originalArtifactRefs = `
  create table public.artifact_refs (
    id uuid primary key default gen_random_uuid(),
    tenant_id uuid not null,
    kind text not null,
    entity_type text,
    entity_id uuid,
    r2_key text not null,
    content_type text,
    size_bytes bigint,
    sha256 text,
    created_by uuid,
    created_at timestamptz not null default now()
  );
  create unique index artifact_refs_tenant_key on public.artifact_refs (tenant_id, r2_key);
  create index artifact_refs_tenant_kind on public.artifact_refs (tenant_id, kind);
  alter table public.artifact_refs enable row level security;
  create policy "Service role full access" on public.artifact_refs for all to service_role using (true) with check (true);
`
