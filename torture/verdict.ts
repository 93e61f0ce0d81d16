// The end: nothing goes wrong any more, all work is finished, time passes. Then everything must be as it should be.
import { setTimeout as sleep } from 'node:timers/promises'
import { pino } from 'pino'
import { createDaemon, type Daemon } from '../src/daemon.ts'
import { createPool } from '../src/db/pool.ts'
import { messageOf } from '../src/errors.ts'
import { createLighterClient } from '../src/index.ts'
import { openStore } from '../src/store/object-store.ts'
import { oddFrames } from '../test/support/invariants.ts'
import { openRawS3 } from '../test/support/raw-s3.ts'
import { ageOnce } from './ageing.ts'
import { checkAllCells, checkCellTenants, checkRestoredCells, findHeavyCells } from './cell-verdict.ts'
import type { Command } from './commands.ts'
import type { Findings } from './findings.ts'
import { settlePartitions, withoutPartition } from './partitions.ts'
import { codeOf, type Kept, sha256Of } from './programs.ts'
import { checkRows } from './readers.ts'
import { leaseMs, shortLivedKind } from './settings.ts'
import type { OpenUpload } from './store-proxy.ts'
import { type TortureSweep, tortureSweep } from './sweep.ts'
import type { World } from './world.ts'

export interface Verdict {
  rows_checked: number
  artifacts_checked: number
  artifacts: number
  objects: number
}

export interface VerdictContext {
  world: World
  command: Command
  findings: Findings
  /** What programs have put. */
  kept: Kept[]
  /** Multipart uploads that were open at the end of the storm. */
  openUploads: Map<string, OpenUpload>
  signal: AbortSignal
  onPhase: (phase: string) => void
}

export async function reachVerdict(context: VerdictContext): Promise<Verdict> {
  await settlePartitions(context.world.admin)
  // Where something is wrong already, the rest only tells how much of it: no need to tidy up first.
  if (!context.findings.any()) await finishAllWork(context)
  context.onPhase('checking')
  if (!context.findings.any()) {
    await checkBucket(context)
    await checkUploads(context)
    for (const odd of await oddFrames(context.world.admin))
      context.findings.add('lost', 'exceptions of a frame', JSON.stringify(odd))
  }
  await checkTenants(context)
  await checkCellTenants(context)
  await checkDamage(context)
  const verdict = {
    rows_checked: (await checkAllRows(context)) + (await checkAllCells(context)),
    artifacts_checked: await checkKept(context),
    ...(await countStored(context)),
  }
  if (!context.findings.any()) await checkRestoredCells(context)
  return verdict
}

async function finishAllWork(context: VerdictContext): Promise<void> {
  const { world, command, findings, signal, onPhase } = context
  const config = world.calmConfig()
  onPhase('recovering')
  const daemons: Daemon[] = []
  // Too little would wait for ever.
  await world.admin.query(`select lighter.set_defaults(settle_for => '0', max_wait => '0')`)
  try {
    for (let n = 0; n < 2; n++) {
      const daemon = createDaemon({ config, log: pino({ level: 'silent' }) })
      await daemon.start()
      daemons.push(daemon)
    }
    await drain(context)
    // Rows whose jobs have ended while they were gone are looked for when all transactions of then are over.
    for (let pass = 0; pass < 2; pass++) await sweep(context, 'orphans')
    await drain(context)
    await findDeadLetters(context)
    await findHeavyRows(context, false)
    await findHeavyCells(context, false)
    onPhase('unpin and backfill')
    for (const args of [
      ['unpin', '--all'],
      ['backfill', '--restart'],
    ]) {
      const { code, said } = await command.run(args, signal)
      if (code !== 0) findings.add('stuck_jobs', args.join(' '), said)
    }
    await drain(context)
    await findHeavyRows(context, true)
    await findHeavyCells(context, true)
    onPhase('sweeping')
    await withoutPartition(world.admin, () => sweepBlindly(context))
    await sweepUntilQuiet(context)
  } finally {
    await Promise.all(daemons.map(daemon => daemon.stop()))
  }
}

const patienceMs = 120_000
/** Of whoever knows already that something is wrong. */
const shortPatienceMs = 5_000

/** Until the queue is empty. Whoever waits for a second try has waited long enough. */
async function drain({ world: { admin }, findings, signal }: VerdictContext): Promise<void> {
  let best = Number.POSITIVE_INFINITY
  let bestAt = performance.now()
  while (!signal.aborted) {
    const { rows } = await admin.query<{ n: number }>('select count(*)::int as n from lighter.jobs')
    const n = rows[0]?.n ?? 0
    if (n === 0) return
    if (n < best) {
      best = n
      bestAt = performance.now()
    }
    if (performance.now() - bestAt > (findings.any() ? shortPatienceMs : patienceMs)) break
    await admin.query(
      `update lighter.waiting set available_at = now() where available_at > now() + $1 * interval '1 ms'`,
      [leaseMs + 500],
    )
    await sleep(50)
  }
  const { rows } = await admin.query<{ rowId: string; error: string | null }>(
    'select row_id as "rowId", last_error as error from lighter.jobs',
  )
  for (const { rowId, error } of rows) findings.add('stuck_jobs', rowId, `its job never ends: ${error}`)
}

async function sweep(
  { world, findings, signal }: VerdictContext,
  name: TortureSweep,
): Promise<Record<string, number>> {
  const config = world.calmConfig()
  const pool = createPool(config.databaseUrl, 4, () => undefined, { unlimited: true })
  const store = openStore(config.store)
  try {
    const report = await tortureSweep(name, { pool, store, config, signal })
    for (const key of report.unknown) findings.add('leaked_objects', key, 'it is not on record')
    for (const key of report.missing) findings.add('lost', key, 'it is stored, and not there')
    return report.counts
  } catch (error) {
    findings.add('leaked_objects', `sweep ${name}`, messageOf(error))
    return {}
  } finally {
    await pool.end()
    store.close()
  }
}

async function findDeadLetters({ world: { admin }, findings }: VerdictContext): Promise<void> {
  const { rows } = await admin.query<{ rowId: string; error: string }>(
    `select f.row_id as "rowId", f.last_error as error from lighter.failed_jobs f
      where not (f.last_error like 'lost_pointer%' and ${isMovedSql('f.row_id')})`,
  )
  for (const { rowId, error } of rows) findings.add('stuck_jobs', rowId, `a dead letter: ${error}`)
}

/** SQL: rows of conversations that are moved. What is written to one that its tenant can't read stays in it. */
const isMovedSql = (rowId: string) =>
  `exists (select from torture.expected x where x.row_id::text = ${rowId} and x.other_tenant_id is not null)`

/**
 * Rows that nobody has queued, though they hold what should have gone. In a row that was moved a field stays beside the
 * pointer that its tenant can't follow, for which there is no job; when it is moved back, a backfill finds it.
 */
async function findHeavyRows(
  { world: { admin }, findings }: VerdictContext,
  restoredToo: boolean,
): Promise<void> {
  const { rows } = await admin.query<{ rowId: string }>(
    `select m.id as "rowId"
       from public.conversation_messages m join public.conversations c on c.id = m.conversation_id
      where (jsonb_typeof(m.metadata) = 'object' and octet_length(m.metadata::text) > 8000
             or jsonb_typeof(m.metadata) = 'array' and octet_length(lighter.array_rest(m.metadata)::text) > 8000
             or jsonb_typeof(m.metadata) = 'object' and jsonb_typeof(m.metadata -> 'tool_interactions') in ('array', 'object')
                and m.metadata -> 'tool_interactions' not in ('[]', '{}'))
        and not (${isMovedSql('m.id::text')}
                 and (not $1
                      or exists (select from lighter.failed_jobs f where f.row_id = m.id::text)
                      or exists (select from public.artifact_refs a
                                  where a.id = lighter.as_uuid(m.metadata ->> 'tool_interactions_ref') and a.tenant_id <> c.tenant_id
                                    and a.frame_id = lighter.frame_of(lighter.as_uuid(m.metadata ->> 'tool_interactions_ref')))))
        and ($1 or not exists (select from torture.restored r where r.id in (m.id, c.tenant_id)))`,
    [restoredToo],
  )
  for (const { rowId } of rows) {
    findings.add(
      'stuck_jobs',
      rowId,
      `the row is heavy and has no job${restoredToo ? ' after a backfill' : ''}`,
    )
  }
}

/** Time passes, and all is swept that is given up, while a partition is out of sight: of its rows it must be nothing. */
async function sweepBlindly({ world, findings, signal }: VerdictContext): Promise<void> {
  const config = world.calmConfig()
  const pool = createPool(config.databaseUrl, 4, () => undefined, { unlimited: true })
  const store = openStore(config.store)
  try {
    for (let round = 0; round < blindRounds; round++) {
      await ageOnce(world.admin, 0)
      for (const name of ['release', 'retention'] as const) {
        await tortureSweep(name, { pool, store, config, signal }).catch(error => {
          if (codeOf(error) !== 'rows_out_of_sight')
            findings.add('leaked_objects', `sweep ${name}`, messageOf(error))
        })
      }
    }
  } finally {
    await pool.end()
    store.close()
  }
}

/** Released, deleted, purged: each takes one. */
const blindRounds = 4
const mostRounds = 12

async function sweepUntilQuiet(context: VerdictContext): Promise<void> {
  const { world, findings, signal } = context
  let worked = true
  for (let round = 0; round < mostRounds && worked && !signal.aborted; round++) {
    await ageOnce(world.admin, 0)
    await world.admin.query(
      `update lighter.objects set delete_after = least(delete_after, now()), lease_until = least(lease_until, now() - interval '1 second')
        where state <> 'stored'`,
    )
    worked = false
    for (const name of ['release', 'retention', 'compaction', 'orphans'] as const) {
      const counts = await sweep(context, name)
      for (const what of ['released', 'tombstoned', 'purged', 'artifacts_moved', 'orphans'])
        worked ||= (counts[what] ?? 0) > 0
    }
    const { rowCount } = await world.admin.query(
      `select from lighter.objects where state <> 'stored' limit 1`,
    )
    worked ||= (rowCount ?? 0) > 0
  }
  if (worked && !signal.aborted)
    findings.add('leaked_objects', 'the sweeps', `not quiet after ${mostRounds} rounds`)
}

/** What is in the bucket, what is on record, and what artifacts use, are the same. */
async function checkBucket({ world, findings }: VerdictContext): Promise<void> {
  const store = openStore(world.calmConfig().store)
  const listed = new Set<string>()
  try {
    for await (const { key } of store.list(`${store.prefix}tenants/`)) listed.add(key)
  } finally {
    store.close()
  }
  const { rows } = await world.admin.query<{ key: string; state: string; used: boolean }>(
    `select o.r2_key as key, o.state,
            exists (select from public.artifact_refs a
                     where a.tenant_id = o.tenant_id and a.r2_key = o.r2_key and a.purged_at is null) as used
       from lighter.objects o`,
  )
  const known = new Map(rows.map(row => [row.key, row]))
  for (const key of listed) if (!known.has(key)) findings.add('leaked_objects', key, 'it is not on record')
  for (const { key, state, used } of rows) {
    if (!used) findings.add('leaked_objects', key, `no artifact uses it, and it is still ${state}`)
    else if (state !== 'stored') findings.add('lost', key, `artifacts use it, and it is ${state}`)
    if (used && !listed.has(key)) findings.add('lost', key, 'artifacts use it, and it is not there')
  }
  const unknown = await world.admin.query<{ id: string; key: string }>(
    `select a.id, a.r2_key as key from public.artifact_refs a left join lighter.objects o using (tenant_id, r2_key)
      where a.purged_at is null and o.r2_key is null`,
  )
  for (const { id, key } of unknown.rows) findings.add('lost', id, `its object ${key} is not on record`)
}

/** What the sweeps of the verdict have aborted takes no part any more. */
async function checkUploads({ world, findings, openUploads }: VerdictContext): Promise<void> {
  const store = openRawS3(world.calmConfig().store)
  try {
    for (const [id, { key, parts }] of openUploads) {
      // One without a part takes no space: its id may have been lost in the moment in which it was opened.
      if (parts === 0) continue
      const open = await store.uploadPart(key, decodeURIComponent(id), parts + 1, Buffer.from('x')).then(
        () => true,
        () => false,
      )
      if (open) findings.add('leaked_objects', key, `${parts} part(s) of an upload of it were never aborted`)
    }
  } finally {
    store.close()
  }
}

/** Every row's pointers, over payloads that point on, lead to artifacts of its tenant, under its tenant's keys. */
async function checkTenants({ world: { admin }, findings }: VerdictContext): Promise<void> {
  const { rows } = await admin.query<{ subject: string; detail: string }>(
    `with recursive pointers as (
       select m.id as row_id, c.tenant_id, lighter.as_uuid(m.metadata ->> n.name) as id
         from public.conversation_messages m
         join public.conversations c on c.id = m.conversation_id
        cross join unnest(array['tool_interactions_ref', 'artifact_metadata_ref']) n(name)
        where jsonb_typeof(m.metadata) = 'object' and m.metadata ? n.name
       union
       select m.id, c.tenant_id, e.id
         from public.conversation_messages m
         join public.conversations c on c.id = m.conversation_id
        cross join unnest(lighter.array_pointers(m.metadata)) e(id)
       union
       select p.row_id, p.tenant_id, r.id
         from pointers p
         join public.artifact_refs a on a.id = p.id and a.frame_id = lighter.frame_of(p.id)
        cross join unnest(a.refers_to) r(id)
     )
     select p.row_id as subject, format('tenant %s, its artifact %s of tenant %s in %s', p.tenant_id, p.id, a.tenant_id, a.r2_key) as detail
       from pointers p join public.artifact_refs a on a.id = p.id and a.frame_id = lighter.frame_of(p.id)
      where a.tenant_id <> p.tenant_id and not ${isMovedSql('p.row_id::text')}
     union all
     select a.id, format('tenant %s, in %s', a.tenant_id, a.r2_key) from public.artifact_refs a
      where a.purged_at is null and not starts_with(a.r2_key, 'torture/tenants/' || a.tenant_id || '/')
     union all
     select a.id, format('of tenant %s, taken off a row of tenant %s', a.tenant_id, e.tenant_id)
       from public.artifact_refs a join torture.expected e on e.row_id::text = a.row_id
      where a.tenant_id not in (e.tenant_id, coalesce(e.other_tenant_id, e.tenant_id))`,
  )
  for (const { subject, detail } of rows) findings.add('cross_tenant', subject, detail)
}

/** The verify sweep must have found no damage where there is none. */
async function checkDamage(context: VerdictContext): Promise<void> {
  const { rows } = await context.world.admin.query<{ id: string; damage: string }>(
    'select id, damage from public.artifact_refs where damaged_at is not null and purged_at is null',
  )
  for (const { id, damage } of rows) context.findings.add('lost', id, `on record as damaged: ${damage}`)
}

const pageRows = 20

async function checkAllRows({ world, findings }: VerdictContext): Promise<number> {
  const store = openStore(world.calmConfig().store)
  const context = { admin: world.admin, worker: world.worker, store, findings }
  let checked = 0
  try {
    for (let after = '00000000-0000-0000-0000-000000000000'; ; ) {
      const { rows } = await world.admin.query<{ id: string }>(
        'select row_id as id from torture.expected where row_id > $1 order by row_id limit $2',
        [after, pageRows],
      )
      const ids = rows.map(row => row.id)
      checked += await checkRows(context, ids, true)
      const last = ids.at(-1)
      if (last === undefined) break
      after = last
    }
  } finally {
    store.close()
  }
  const { rows } = await world.admin.query<{ id: string }>(
    'select id from public.conversation_messages m where not exists (select from torture.expected e where e.row_id = m.id)',
  )
  for (const { id } of rows) findings.add('mismatched', id, 'the row was deleted, and is there')
  return checked
}

/** What programs have put is there once, to the last byte, until it was deleted or its time was over. */
async function checkKept({ world, findings, kept }: VerdictContext): Promise<number> {
  const store = openStore(world.calmConfig().store)
  const finished = !findings.any()
  try {
    for (const one of kept) {
      const client = createLighterClient({ pool: world.admin, store, tenantId: one.tenantId })
      const { artifacts } = await client.list({ entityType: 'torture', entityId: one.entityId })
      const [artifact, ...more] = artifacts
      if (more.length > 0)
        findings.add('leaked_objects', one.entityId, `put once, and stored ${artifacts.length} times`)
      // Whether it was put or deleted is not known of those whose answer was lost.
      const unsure = one.id === null || one.state === 'going'
      if (artifact === undefined) {
        if (one.state === 'there' && one.kind !== shortLivedKind && !unsure)
          findings.add('lost', one.id ?? one.entityId, 'it was stored, and is not there')
        continue
      }
      if (one.state === 'gone') findings.add('mismatched', artifact.id, 'it was deleted, and is there')
      if (one.kind === shortLivedKind && finished)
        findings.add('leaked_objects', artifact.id, 'its time is over, and it is there')
      if (one.id !== null && artifact.id !== one.id)
        findings.add('lost', one.id, `another one is in its place: ${artifact.id}`)
      const sha256 = await client.get(artifact.id).then(
        ({ payload }) => sha256Of(payload.bytes),
        error => `${codeOf(error)} ${messageOf(error)}`,
      )
      if (sha256 !== one.sha256) findings.add('mismatched', artifact.id, `it reads ${sha256}`)
    }
  } finally {
    store.close()
  }
  return kept.length
}

async function countStored({ world: { admin } }: VerdictContext) {
  const { rows } = await admin.query<{ artifacts: number; objects: number }>(
    `select (select count(*)::int from public.artifact_refs where purged_at is null) as artifacts,
            (select count(*)::int from lighter.objects) as objects`,
  )
  return { artifacts: rows[0]?.artifacts ?? 0, objects: rows[0]?.objects ?? 0 }
}
