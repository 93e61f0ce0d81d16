// Tables with keys of any kind: what came off their rows, and what the rows are when they are read back.
import { hydrateMany } from '../../src/artifacts/hydrate.ts'
import { readRows } from '../../src/artifacts/rows.ts'
import { loadSources, type Source } from '../../src/source/sources.ts'
import type { TestEnvironment } from './environment.ts'
import { column, value } from './sql.ts'

export async function sourceOf(environment: TestEnvironment, table: string): Promise<Source> {
  const id = await value<number>(
    environment.admin,
    'select id from lighter.sources where relation = $1::regclass',
    [table],
  )
  const source = (await loadSources(environment.worker)).get(id)
  if (source === undefined) throw new Error(`${table} is out of sight`)
  return source
}

/** Keys of the rows that something came off, as the catalogue has them. */
export const offloadedKeys = (environment: TestEnvironment, table: string): Promise<string[]> =>
  column<string>(
    environment.admin,
    `select distinct a.row_id from public.artifact_refs a join lighter.sources s on s.id = a.source_id
      where s.relation = $1::regclass order by a.row_id`,
    [table],
  )

/** What the rows hydrate to, by their keys; an error where that failed. */
export async function hydratedRows(
  environment: TestEnvironment,
  table: string,
  keys: string[],
): Promise<Map<string, string | null | Error>> {
  const rows = await readRows(environment.worker, await sourceOf(environment, table), keys)
  const results = await hydrateMany({ db: environment.worker, store: environment.store }, [...rows.values()])
  return new Map(
    [...rows.keys()].map((key, i) => {
      const result = results[i]
      return [key, result?.error ?? result?.metadata ?? null]
    }),
  )
}
