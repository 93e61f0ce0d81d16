// Rewrites a table in the way that the operator chose, and makes sure that all that hangs on it is there as before.
import type pg from 'pg'
import type { Queryable } from '../db/pool.ts'
import { isLockTimeout, LighterError } from '../errors.ts'
import { type Repack, runRepack } from './repack.ts'
import type { Space } from './space.ts'

export interface Rewritten {
  beforeBytes: number
  afterBytes: number
  seconds: number
}

/** Files, triggers and policies of a table and its partitions, and its sources. */
interface Standing {
  bytes: number
  files: string
  /** Triggers, policies, rights and sources, as one text. */
  attached: string
}

/** @throws {LighterError} `repack_failed`, `repack_skipped`, `attachment_changed` */
export async function rewriteByRepack(
  db: Queryable,
  space: Space,
  repack: Repack,
  onLine: (line: string) => void,
): Promise<Rewritten> {
  const before = await standingOf(db, space)
  const started = performance.now()
  await runRepack(repack, onLine)
  const after = await standingOf(db, space)
  // It ends with success when it gave up waiting for a lock.
  if (after.files === before.files)
    throw new LighterError(
      'repack_skipped',
      `pg_repack did not rewrite ${space.tableSql}: another session held a lock on it for too long`,
      {
        hint: 'See what it said above. Run it again when that session has ended; lighter ends none.',
        retryable: true,
      },
    )
  return done(space, before, after, started)
}

/** @throws {LighterError} `table_locked`, `attachment_changed` */
export async function rewriteByVacuumFull(
  client: pg.Client,
  space: Space,
  lockTimeoutMs: number,
): Promise<Rewritten> {
  const before = await standingOf(client, space)
  const started = performance.now()
  try {
    // What waits for this lock lets all readers wait behind it.
    await client.query(`set lock_timeout = ${lockTimeoutMs}`)
    await client.query(`vacuum (full, analyze) ${space.tableSql}`)
  } catch (cause) {
    if (!isLockTimeout(cause)) throw cause
    throw new LighterError(
      'table_locked',
      `VACUUM FULL did not get its lock on ${space.tableSql} within ${lockTimeoutMs / 1000} s`,
      {
        cause,
        hint: 'Run it when no long transaction reads or writes the table, or raise --lock-timeout: all who read it wait as long.',
        retryable: true,
      },
    )
  }
  return done(space, before, await standingOf(client, space), started)
}

function done(space: Space, before: Standing, after: Standing, started: number): Rewritten {
  if (before.attached !== after.attached)
    throw new LighterError(
      'attachment_changed',
      `triggers, policies or rights of ${space.tableSql} are not as they were before the rewrite`,
      {
        hint: 'Somebody changed them meanwhile, or the rewrite did. lighter doctor names what is missing; lighter attach <table> mends it.',
      },
    )
  return { beforeBytes: before.bytes, afterBytes: after.bytes, seconds: (performance.now() - started) / 1000 }
}

async function standingOf(db: Queryable, { tableSql }: Space): Promise<Standing> {
  const { rows } = await db.query<Standing>({
    text: `
      with parts as (
        select $1::regclass::oid as oid union select relid from pg_partition_tree($1::regclass)
      )
      select (select sum(pg_total_relation_size(oid)) from parts)::float8 as bytes,
             (select string_agg(pg_relation_filenode(oid)::text, ',' order by oid) from parts) as files,
             concat_ws(e'\\n',
               (select string_agg(concat_ws(' ', t.tgrelid, t.tgname, t.tgenabled, pg_get_triggerdef(t.oid)), e'\\n' order by t.tgrelid, t.tgname)
                  from pg_trigger t where t.tgrelid in (select oid from parts) and not t.tgisinternal),
               (select string_agg(concat_ws(' ', p.polrelid, p.polname, p.polcmd), e'\\n' order by p.polrelid, p.polname)
                  from pg_policy p where p.polrelid in (select oid from parts)),
               (select string_agg(concat_ws(' ', c.oid, c.relacl::text), e'\\n' order by c.oid) from pg_class c where c.oid in (select oid from parts))) as attached`,
    values: [tableSql],
  })
  if (rows[0] === undefined) throw new Error('the query answered no row')
  return rows[0]
}
