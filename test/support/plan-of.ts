// What Postgres makes of the statement by which rows are planned, in the general plan that a daemon's session has.
import pg from 'pg'
import type { Queryable } from '../../src/db/pool.ts'
import { leaseOf } from '../../src/offload/lease.ts'
import { newTokens, planRows } from '../../src/offload/plan.ts'
import type { Source } from '../../src/source/sources.ts'
import { column } from './sql.ts'

/** @returns EXPLAIN ANALYZE */
export async function planOf(pool: pg.Pool, source: Source, rowIds: string[]): Promise<string> {
  let text = ''
  let values: unknown[] = []
  const spy = {
    query: (statement: pg.QueryConfig) => {
      text = statement.text
      values = statement.values ?? []
      return Promise.resolve({ rows: [] })
    },
  } as unknown as Queryable
  const { jobs } = leaseOf(
    'none',
    rowIds.map(rowId => ({
      sourceId: source.id,
      rowId,
      attempts: 1,
      conflicts: 0,
      priority: 0,
      enqueuedMs: 0,
      dueMs: 0,
      error: null,
      writtenBy: null,
      waited: null,
    })),
  )
  const limits = { budgetBytes: 1e6, streamThresholdBytes: 1e6, maxPayloadBytes: 1e6 }
  await planRows(spy, source, jobs, limits, newTokens())
  const client = await pool.connect()
  try {
    // A table of a page is read whole, which says nothing of a large one.
    await client.query(
      `begin; set local enable_seqscan = off; set local plan_cache_mode = force_generic_plan; prepare planned as ${text}`,
    )
    const args = values.map(value => pg.escapeLiteral(String(value))).join(', ')
    return (
      await column<string>(client, `explain (analyze, costs off, timing off) execute planned(${args})`)
    ).join('\n')
  } finally {
    await client.query('rollback; deallocate all')
    client.release()
  }
}
