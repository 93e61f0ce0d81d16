// Which artifacts a payload itself points to: they must live as long as it does. Few do, so the bytes are searched here for
// the pointers' names (Postgres takes 4 us a KB for that), and only the rows that have one are asked for.
import { arrayText } from '../db/array-text.ts'
import type { Queryable } from '../db/pool.ts'
import {
  documentSql,
  fieldSql,
  fromSql,
  ident,
  isVersionSql,
  pointersInSql,
  pointerWords,
  restSql,
  tenantSql,
} from '../source/expressions.ts'
import { isKeyedRowSql, partArrays, partList, partParameters } from '../source/rows-by-key.ts'
import type { Source } from '../source/sources.ts'
import type { FieldPayload, PlannedRow, Tokens } from './plan.ts'

/** Fills in `refersTo` of the rows' payloads. */
export async function notePointers(
  db: Queryable,
  source: Source,
  rows: PlannedRow[],
  tokens: Tokens,
): Promise<void> {
  const names = pointerWords(source).map(word => Buffer.from(word))
  const own = Buffer.from(`: "${tokens.field}"`)
  const asked: PlannedRow[] = []
  for (const row of rows) {
    const mentions = row.payloads.map(payload => mentionsOf(payload, names, own))
    if (mentions.some(each => each.others)) asked.push(row)
    else
      row.payloads.forEach((payload, i) => {
        if (mentions[i]?.own === true) payload.refersTo = [tokens.field]
      })
  }
  if (asked.length === 0) return
  const { rows: found } = await db.query<{ ord: number; field: string; rest: string }>({
    text: pointersSql(source),
    prepare: true,
    values: [
      arrayText(asked.map(row => row.job.rowId)),
      arrayText(asked.map(row => row.version)),
      tokens.field,
      ...partArrays(
        source,
        asked.map(row => row.job.rowId),
      ),
    ],
  })
  // A row that has changed meanwhile is not committed.
  for (const { ord, field, rest } of found) {
    for (const payload of asked[ord - 1]?.payloads ?? []) {
      payload.refersTo = idsOf(payload.phase === 1 ? field : rest)
    }
  }
}

export const idsOf = (list: string | null): string[] => (list === null || list === '' ? [] : list.split(','))

/** Whether the payload has a pointer's name: before the batch's own token, or anywhere else. */
function mentionsOf({ bytes }: FieldPayload, names: Buffer[], own: Buffer) {
  const found = { own: false, others: false }
  if (bytes === null) return found
  for (const name of names) {
    for (let at = bytes.indexOf(name); at !== -1; at = bytes.indexOf(name, at + name.length)) {
      const behind = at + name.length
      if (bytes.subarray(behind, behind + own.length).equals(own)) found.own = true
      else {
        found.others = true
        return found
      }
    }
  }
  return found
}

function pointersSql(source: Source): string {
  return `
    select e.ord::int as ord, coalesce(array_to_string(${pointersInSql(source, 'e.field')}, ','), '') as field,
           coalesce(array_to_string(${pointersInSql(source, restSql(source, 'e.doc', 'e.field', '$3::uuid'))}, ','), '') as rest
      from (select d.*, ${fieldSql(source, 'd.doc', 'd.tenant_id')} as field
              from (select r.ord, ${documentSql(`m.${ident(source.jsonColumn)}`)} as doc, ${tenantSql(source)} as tenant_id
                      from unnest($1::text[], $2::text[]${partParameters(source, 4)}) with ordinality r(row_id, version${partList(source)}, ord)
                      join ${fromSql(source)} on ${isKeyedRowSql(source, 'r')}
                       and ${isVersionSql('m', 'r.version')}
                    offset 0) d
            offset 0) e`
}
