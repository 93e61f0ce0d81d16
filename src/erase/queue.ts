// Queued rows and dead letters of the scope. They name rows only; whose those are the application's tables tell.
import { fromSql, ident, literal, rowsSql, tenantSql } from '../source/expressions.ts'
import { isRowSql } from '../source/rows-by-key.ts'
import { loadSources, type Source } from '../source/sources.ts'
import type { Counts, SweepContext } from '../sweeps/context.ts'
import type { EraseScope } from './scope.ts'

const pageRows = 5000
/**
 * A row may be on its way from one place to another while they are read, so they are read until nothing is found. A tenant
 * who goes on writing is queued again all the time, and must not keep the erasure from its end.
 */
const mostPasses = 5

const waitingTable = 'lighter.waiting'

/** Tables of queued rows, each read page by page in the order of its key, and what is removed from them is counted as. */
const tables = [
  { name: 'lighter.inbox', key: 'id', first: '0', counted: 'jobs' },
  { name: waitingTable, key: 'row_id', first: '', counted: 'jobs' },
  { name: 'lighter.failed_jobs', key: 'row_id', first: '', counted: 'dead_letters' },
] as const

/**
 * What is just being worked on comes first: those leases are taken away, so that nothing of the scope can be committed any
 * more. A row that was deleted while it was queued has no tenant any more.
 */
export async function removeJobs(context: SweepContext, scope: EraseScope, counts: Counts): Promise<void> {
  for (const source of (await loadSources(context.pool)).values()) {
    if (scope.entity !== null && (source.entityType !== scope.entity.type || source.entityColumn === null))
      continue
    for (let pass = 0; pass < mostPasses && !context.signal.aborted; pass++) {
      if ((await removeOf(context, scope, source, counts)) === 0) break
    }
  }
  if (scope.entity === null)
    await context.pool.query('delete from lighter.flushes where tenant_id = $1', [scope.tenantId])
  // What Postgres said of a row may quote it. Where the condition fails still, that is said again.
  await context.pool.query('delete from lighter.when_failures')
}

/** @returns how many rows of the scope it came across */
async function removeOf(
  context: SweepContext,
  scope: EraseScope,
  source: Source,
  counts: Counts,
): Promise<number> {
  let found = 0
  const revoke = async () => {
    const removed = await revokeLeases(context, scope, source)
    counts.jobs = (counts.jobs ?? 0) + removed
    found += removed
  }
  await revoke()
  for (const table of tables) {
    for (let after: string = table.first; !context.signal.aborted; ) {
      const page = await removePage(context, scope, source, table, after)
      counts[table.counted] = (counts[table.counted] ?? 0) + page.removed
      found += page.found
      context.onProgress(counts)
      if (page.last === null) break
      after = page.last
    }
  }
  await revoke()
  return found
}

/** True of a row of the scope. Parameter 2 is the tenant. */
function isMineSql(scope: EraseScope, source: Source, rowId: string): string {
  const entity =
    scope.entity === null || source.entityColumn === null
      ? ''
      : `and m.${ident(source.entityColumn)} = ${literal(scope.entity.id)}`
  return `exists (select from ${fromSql(source)}
                   where ${isRowSql(source, rowId)} and ${tenantSql(source)} = $2 ${entity})`
}

/** A row that is gone has no tenant any more, but the one that it had is on record where it waited for others. */
function wasMineSql(source: Source, table: string): string {
  if (table !== waitingTable) return ''
  return ` or page.tenant_id = $2 and not exists (
    select from ${rowsSql(source)} m where ${isRowSql(source, 'page.row_id')})`
}

/** Rows of others that were in such a lease are worked on anew. @returns rows of the scope that were in one */
async function revokeLeases({ pool }: SweepContext, scope: EraseScope, source: Source): Promise<number> {
  const { rows } = await pool.query<{ removed: number }>(
    `with found as materialized (
       select l.id, j.row_id, j.ord::integer as position
         from lighter.leases l
        cross join lateral unnest(l.source_ids, l.row_ids) with ordinality j(source_id, row_id, ord)
        where j.source_id = $1 and j.ord <> all (l.done)
     ),
     mine as materialized (
       select found.id, array_agg(found.position) as positions
         from found where ${isMineSql(scope, source, 'found.row_id')} group by found.id
     ),
     -- A commit that is just ending is waited for: then its lease is gone.
     held as materialized (
       select l.id, mine.positions from lighter.leases l join mine on mine.id = l.id order by l.id for update of l
     ),
     revoked as (
       update lighter.leases l set id = gen_random_uuid(), until = null, done = l.done || held.positions
         from held where l.id = held.id
       returning cardinality(held.positions) as removed
     )
     select coalesce(sum(removed), 0)::int as removed from revoked`,
    [source.id, scope.tenantId],
  )
  return rows[0]?.removed ?? 0
}

async function removePage(
  { pool }: SweepContext,
  scope: EraseScope,
  source: Source,
  { name, key }: (typeof tables)[number],
  after: string,
): Promise<{ found: number; removed: number; last: string | null }> {
  const { rows } = await pool.query<{ found: number; removed: number; last: string | null }>(
    `with page as materialized (
       select ${key} as key, row_id${name === waitingTable ? ', tenant_id' : ''} from ${name} where source_id = $1 and ${key} > $3 order by ${key} limit $4
     ),
     mine as materialized (
       select page.key from page where ${isMineSql(scope, source, 'page.row_id')}${wasMineSql(source, name)}
     ),
     removed as (
       delete from ${name} j using mine where j.source_id = $1 and j.${key} = mine.key returning 1
     )
     select (select count(*)::int from mine) as found, (select count(*)::int from removed) as removed, (select max(key)::text from page) as last`,
    [source.id, scope.tenantId, after, pageRows],
  )
  return rows[0] ?? { found: 0, removed: 0, last: null }
}
