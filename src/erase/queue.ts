// Jobs and dead letters of the scope's rows. They name rows only; whose those are the application's tables tell.
import { fromSql, ident, literal, tenantSql } from '../source/expressions.ts'
import { loadSources, type Source } from '../source/sources.ts'
import type { Counts, SweepContext } from '../sweeps/context.ts'
import type { EraseScope } from './scope.ts'

const pageRows = 5000

/** Goes through the queue page by page; a row that was deleted with its job waiting has no tenant any more. */
export async function removeJobs(context: SweepContext, scope: EraseScope, counts: Counts): Promise<void> {
  for (const source of (await loadSources(context.pool)).values()) {
    if (scope.entity !== null && (source.entityType !== scope.entity.type || source.entityColumn === null))
      continue
    for (const [table, name] of [
      ['lighter.jobs', 'jobs'],
      ['lighter.failed_jobs', 'dead_letters'],
    ] as const) {
      for (let after = ''; !context.signal.aborted; ) {
        const { removed, last } = await removePage(context, scope, source, table, after)
        counts[name] = (counts[name] ?? 0) + removed
        context.onProgress(counts)
        if (last === null) break
        after = last
      }
    }
  }
}

async function removePage(
  { pool }: SweepContext,
  scope: EraseScope,
  source: Source,
  table: string,
  after: string,
): Promise<{ removed: number; last: string | null }> {
  const entity =
    scope.entity === null || source.entityColumn === null
      ? ''
      : `and m.${ident(source.entityColumn)} = ${literal(scope.entity.id)}`
  const { rows } = await pool.query<{ removed: number; last: string | null }>(
    `with page as materialized (
       select row_id from ${table} where source_id = $1 and row_id > $3 order by row_id limit $4
     ),
     mine as materialized (
       select page.row_id
         from page
        where exists (select from ${fromSql(source)}
                       where m.${ident(source.keyColumn)} = page.row_id::${source.keyType}
                         and ${tenantSql(source)} = $2 ${entity})
     ),
     removed as (
       delete from ${table} j using mine where j.source_id = $1 and j.row_id = mine.row_id returning 1
     )
     select (select count(*)::int from removed) as removed, (select max(row_id) from page) as last`,
    [source.id, scope.tenantId, after, pageRows],
  )
  return rows[0] ?? { removed: 0, last: null }
}
