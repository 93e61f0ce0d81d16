// Hydrates every row and compares it with what was written; on the way builds the table as it would be
// without pg-lighter, to weigh it against.
import type pg from 'pg'
import { type HydrateContext, hydrateMany } from '../artifacts/hydrate.ts'
import { readRows } from '../artifacts/rows.ts'
import type { Source } from '../source/sources.ts'

export interface Verification {
  verified: number
  /** Rows that differ, could not be hydrated, are missing or should not be there, with the reason. */
  mismatches: { id: string; reason: string }[]
}

const pageRows = 200
const maxReasons = 1000

/**
 * @param expected by row id, see `Replay.expected`
 * @param admin owner of the tables; the hydrated rows are copied into `table`
 */
export async function verifyRows(
  context: HydrateContext,
  source: Source,
  expected: Map<string, string>,
  admin: pg.Pool,
  table: string,
  verification: Verification,
): Promise<void> {
  await admin.query(`create table ${table} (like public.conversation_messages including all)`)
  const missing = new Set(expected.keys())
  const mismatch = (id: string, reason: string) => {
    if (verification.mismatches.length < maxReasons) verification.mismatches.push({ id, reason })
  }
  for (let after = '00000000-0000-0000-0000-000000000000'; ; ) {
    const { rows: page } = await admin.query<{ id: string }>(
      'select id from public.conversation_messages where id > $1 order by id limit $2',
      [after, pageRows],
    )
    const last = page.at(-1)
    if (last === undefined) break
    after = last.id
    const rows = [
      ...(await readRows(
        context.db,
        source,
        page.map(row => row.id),
      )),
    ]
    const results = await hydrateMany(
      context,
      rows.map(([, input]) => input),
    )
    const hydrated: { id: string; text: string | null }[] = []
    for (const [i, [id]] of rows.entries()) {
      const result = results[i]
      if (result === undefined || result.error !== null) {
        missing.delete(id)
        mismatch(id, result?.error.message ?? 'hydrate lost the row')
      } else hydrated.push({ id, text: result.metadata })
    }
    const { rows: hashes } = await admin.query<{ id: string; hash: string }>(
      `insert into ${table} (id, conversation_id, role, content, metadata, created_at)
       select m.id, m.conversation_id, m.role, m.content, h.text::jsonb, m.created_at
         from unnest($1::uuid[], $2::text[]) h(id, text) join public.conversation_messages m using (id)
       returning id, encode(sha256(convert_to(metadata::text, 'UTF8')), 'hex') as hash`,
      [hydrated.map(row => row.id), hydrated.map(row => row.text)],
    )
    for (const { id, hash } of hashes) {
      missing.delete(id)
      if (!expected.has(id)) mismatch(id, 'the row should not be there')
      else if (expected.get(id) !== hash) mismatch(id, 'the row differs from what was written')
      else verification.verified++
    }
  }
  for (const id of missing) mismatch(id, 'the row is missing')
}
