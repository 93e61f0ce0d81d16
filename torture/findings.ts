// What was found to be wrong, each thing once, with the history of what it is about.
import type pg from 'pg'

export const findingKinds = [
  'mismatched',
  'lost',
  'leaked_objects',
  'cross_tenant',
  'stuck_jobs',
  'refused_writes',
  'crashes',
] as const
export type FindingKind = (typeof findingKinds)[number]

export interface Finding {
  kind: FindingKind
  /** A row, an object, an artifact. */
  subject: string
  detail: string
  atMs: number
}

export interface Findings {
  add(kind: FindingKind, subject: string, detail: string): void
  count(kind: FindingKind): number
  /** The first of each kind. */
  list(): Finding[]
  any(): boolean
}

const keptOfKind = 20

export function createFindings(onFirst: () => void): Findings {
  const seen = new Map<FindingKind, Set<string>>(findingKinds.map(kind => [kind, new Set()]))
  const findings: Finding[] = []
  const began = performance.now()
  return {
    add: (kind, subject, detail) => {
      const subjects = seen.get(kind)
      if (subjects === undefined || subjects.has(subject)) return
      subjects.add(subject)
      const first = findings.length === 0
      if (subjects.size <= keptOfKind) {
        findings.push({ kind, subject, detail, atMs: Math.round(performance.now() - began) })
      }
      if (first) onFirst()
    },
    count: kind => seen.get(kind)?.size ?? 0,
    list: () => findings,
    any: () => findings.length > 0,
  }
}

/** What was done to a row, what it looks like, and where its artifacts are. Of an artifact or object: of a row that it is of. */
export async function historyOf(admin: pg.Pool, subject: string): Promise<string[]> {
  const other = await historyOfOther(admin, subject)
  if (other.length > 0) return other
  const taken = await admin.query<{ rowId: string }>(
    `select row_id as "rowId" from public.artifact_refs
      where (id::text = $1 or r2_key = $1) and row_id is not null order by created_at desc limit 1`,
    [subject],
  )
  const rowId = taken.rows[0]?.rowId ?? subject
  if (!/^[0-9a-f-]{36}$/.test(rowId)) return []
  const { rows } = await admin.query<{ line: string }>(
    `(select to_char(h.at, 'HH24:MI:SS.MS') || '  version ' || h.version || '  ' || h.operation || coalesce('  ' || h.bytes || ' bytes', '') as line
        from torture.history h where h.row_id = $1 order by h.id desc limit 30)
     union all
     select 'row       ' || m.xmin || ' ' || coalesce(left(m.metadata::text, 400), 'null')
       from public.conversation_messages m where m.id = $1
     union all
     select 'expected  ' || coalesce(left(e.metadata::text, 400), 'null') from torture.expected e where e.row_id = $1
     union all
     select format('artifact  %s of %s, created %s, released %s, deleted %s, purged %s, in %s (%s) from %s',
                   a.id, coalesce(a.field, 'metadata'), a.created_at, a.released_at, a.deleted_at, a.purged_at, a.r2_key, o.state, a.byte_offset)
       from public.artifact_refs a left join lighter.objects o using (tenant_id, r2_key)
      where a.row_id = $1::text
     union all
     select format('job       %s, attempts %s, available %s, %s', j.place, j.attempts, j.available_at, j.last_error)
       from lighter.jobs j where j.row_id = $1::text`,
    [rowId],
  )
  return rows.map(row => row.line)
}

/** Of an event or a file, by its id in the model or its key; of an artifact of one. Empty: it is of none. */
async function historyOfOther(admin: pg.Pool, subject: string): Promise<string[]> {
  const { rows } = await admin.query<{ line: string }>(
    `with named as (
       select $1::text as subject
       union
       select a.row_id from public.artifact_refs a where (a.id::text = $1 or a.r2_key = $1) and a.row_id is not null
     ),
     found as (
       select e.row_id, e.row_key, format('expected  metadata %s, detail %s', coalesce(left(e.metadata::text, 300), 'null'), coalesce(left(e.detail::text, 300), 'null')) as expected,
              (select format('row       metadata %s, detail %s', coalesce(left(r.metadata, 300), 'null'), coalesce(left(r.detail, 300), 'null'))
                 from torture.raw_event(e.created_at, e.tenant, e.id) r) as stored
         from torture.event_rows e join named n on n.subject in (e.row_id::text, e.row_key)
       union all
       select f.row_id, f.name, format('expected  %s bytes %s, astray %s', octet_length(f.body), left(encode(f.body, 'escape'), 300), f.astray),
              (select format('row       %s bytes, %s', octet_length(m.body), m.body_artifact_id) from public.files m where m.name = f.name)
         from torture.file_rows f join named n on n.subject in (f.row_id::text, f.name)
     )
     select h.line from (
       select to_char(h.at, 'HH24:MI:SS.MS') || '  version ' || h.version || '  ' || h.operation || coalesce('  ' || h.bytes || ' bytes', '') as line
         from torture.history h join found f using (row_id) order by h.id desc limit 30) h
     union all
     select 'key       ' || f.row_key from found f
     union all
     select f.expected from found f
     union all
     select f.stored from found f
     union all
     select format('artifact  %s of %s, created %s, released %s, deleted %s, purged %s, in %s',
                   a.id, a.field, a.created_at, a.released_at, a.deleted_at, a.purged_at, a.r2_key)
       from public.artifact_refs a join found f on f.row_key = a.row_id
     union all
     select format('job       %s, attempts %s, available %s, %s', j.place, j.attempts, j.available_at, j.last_error)
       from lighter.jobs j join found f on f.row_key = j.row_id`,
    [subject],
  )
  return rows.map(row => row.line)
}
