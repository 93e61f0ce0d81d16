// The verdict on events and files: none heavy without a job, none of another tenant's, each as it must be.
import { openStore } from '../src/store/object-store.ts'
import { checkCells } from './cell-readers.ts'
import { loadColumns } from './cells.ts'
import type { Command } from './commands.ts'
import type { Findings } from './findings.ts'
import type { World } from './world.ts'

interface Context {
  world: World
  findings: Findings
}

interface RestoreContext extends Context {
  command: Command
  signal: AbortSignal
}

/** As of messages: rows that hold what should have gone. @param restoredToo a backfill has looked for all there are */
export async function findHeavyCells({ world, findings }: Context, restoredToo: boolean): Promise<void> {
  const { rows } = await world.admin.query<{ rowId: string; what: string }>(
    `with heavy as (
       select e.row_id, e.row_key, e.tenant as owner, e.unqueued, 'metadata' as what
         from torture.event_rows e
         join public.events m on m.tenant = e.tenant and m.id = e.id and m.created_at = e.created_at
        where jsonb_typeof(m.metadata) = 'object' and octet_length(m.metadata::text) > 8000
           or jsonb_typeof(m.metadata) = 'array' and octet_length(lighter.array_rest(m.metadata)::text) > 8000
           or jsonb_typeof(m.metadata) = 'object' and jsonb_typeof(m.metadata -> 'tool_interactions') in ('array', 'object')
              and m.metadata -> 'tool_interactions' not in ('[]', '{}')
       union all
       select e.row_id, e.row_key, e.tenant as owner, e.unqueued, 'detail'
         from torture.event_rows e
         join public.events m on m.tenant = e.tenant and m.id = e.id and m.created_at = e.created_at
        where octet_length(m.detail::text) > 8000
       union all
       select f.row_id, f.name, f.tenant_id::text, f.unqueued, 'body'
         from torture.file_rows f join public.files m on m.name = f.name
        where octet_length(m.body) > 8000
     )
     select h.row_id as "rowId", h.what from heavy h
      where $1
         or not h.unqueued
            and not exists (select from torture.restored_keys r where r.row_key in (h.row_key, h.owner))
            and not exists (select from torture.restored r where r.id::text = h.owner)`,
    [restoredToo],
  )
  for (const { rowId, what } of rows)
    findings.add(
      'stuck_jobs',
      rowId,
      `its ${what} is heavy and has no job${restoredToo ? ' after a backfill' : ''}`,
    )
}

/** What came off a row is of the tenant whose row it is, and so is what the row points to. */
export async function checkCellTenants({ world, findings }: Context): Promise<void> {
  const { rows } = await world.admin.query<{ subject: string; detail: string }>(
    `with owners as (
       select e.row_id, e.row_key, e.tenant, lighter.tenant_of(s.tenant_namespace, e.tenant) as tenant_id, s.id as source_id
         from torture.event_rows e
         join lighter.sources s on s.relation = 'public.events'::regclass
       union all
       select f.row_id, f.name, f.tenant_id::text, f.tenant_id, s.id
         from torture.file_rows f
         join lighter.sources s on s.relation = 'public.files'::regclass
     ),
     pointers as (
       select f.row_id, f.tenant_id, m.body_artifact_id as id
         from torture.file_rows f join public.files m on m.name = f.name
        where not f.astray and m.body is null and m.body_artifact_id is not null
     )
     select o.row_id::text as subject, format('of tenant %s, taken off a row of tenant %s', a.tenant_id, o.tenant_id) as detail
       from owners o
       join public.artifact_refs a on a.source_id = o.source_id and a.row_id = o.row_key
      where a.tenant_id <> o.tenant_id
     union all
     -- However a text became a uuid.
     select a.tenant_id::text, format('of the tenants %s', string_agg(distinct o.tenant, ', '))
       from owners o
       join public.artifact_refs a on a.source_id = o.source_id and a.row_id = o.row_key
      group by a.tenant_id
     having count(distinct o.tenant) > 1
     union all
     select p.row_id::text, format('tenant %s, its artifact %s of tenant %s', p.tenant_id, p.id, a.tenant_id)
       from pointers p
       join public.artifact_refs a on a.id = p.id and a.frame_id = lighter.frame_of(p.id)
      where a.tenant_id <> p.tenant_id`,
  )
  for (const { subject, detail } of rows) findings.add('cross_tenant', subject, detail)
}

const pageRows = 20

/** @returns how many rows there are */
export async function checkAllCells({ world, findings }: Context): Promise<number> {
  const { admin, worker } = world
  const store = openStore(world.calmConfig().store)
  const context = { admin, worker, store, findings, columns: await loadColumns(worker) }
  const { rows } = await admin.query<{ id: string }>(
    'select row_id as id from torture.event_rows union all select row_id from torture.file_rows order by id',
  )
  const ids = rows.map(row => row.id)
  try {
    for (let from = 0; from < ids.length; from += pageRows)
      await checkCells(context, ids.slice(from, from + pageRows), true)
  } finally {
    store.close()
  }
  const strangers = await admin.query<{ key: string }>(
    `select torture.event_key(m.tenant, m.id, m.created_at) as key from public.events m
      where not exists (select from torture.event_rows e where e.tenant = m.tenant and e.id = m.id and e.created_at = m.created_at)
     union all
     select m.name from public.files m where not exists (select from torture.file_rows f where f.name = m.name)`,
  )
  for (const { key } of strangers.rows) findings.add('mismatched', key, 'the row was deleted, and is there')
  return ids.length
}

/** Puts every value back into its row, and looks at the rows themselves. Ids that name nothing stay where they are. */
export async function checkRestoredCells({
  world,
  findings,
  command,
  signal,
}: RestoreContext): Promise<void> {
  for (const table of ['public.events', 'public.files']) {
    const args = ['restore', '--table', table]
    let { code, said } = await command.run(args, signal)
    // A kill at a request of the command may be left over from the storm.
    for (let again = 0; again < 2 && code === null && !signal.aborted; again++)
      ({ code, said } = await command.run(args, signal))
    // Exit status 1: some row could not be restored. Which ones is seen below.
    if (code === null || code > 1) findings.add('stuck_jobs', `restore ${table}`, said)
  }
  const { rows } = await world.admin.query<{ rowId: string; what: string }>(
    `select e.row_id as "rowId", 'event' as what
       from torture.event_rows e
       left join public.events m on m.tenant = e.tenant and m.id = e.id and m.created_at = e.created_at
      where (m.metadata, m.detail) is distinct from (e.metadata, e.detail)
     union all
     select f.row_id, format('file: pointer %s', m.body_artifact_id)
       from torture.file_rows f
       left join public.files m on m.name = f.name
      where torture.bytes_of(m.body) is distinct from f.body or f.astray <> (m.body_artifact_id is not null)`,
  )
  for (const { rowId, what } of rows)
    findings.add('mismatched', rowId, `after a restore the row is not what it was: ${what}`)
}
