// Where one row is on its way out of its table, in plain words: for `lighter status` and the dashboard.
//
// The sizes are those that the daemon's own look at the row finds (src/offload/group.ts). They are hints there and here: the
// plan decides what leaves.
import { formatBytes, formatCount } from '../cli/output.ts'
import { arrayText } from '../db/array-text.ts'
import type { Queryable } from '../db/pool.ts'
import { isNoRowsFault } from '../errors.ts'
import { type LookRow, lookSql } from '../offload/group.ts'
import { followedIdsSql, fromSql, ident, mayLeaveSql, tenantSql } from '../source/expressions.ts'
import { readPointersSql } from '../source/modes.ts'
import { isPinnedSql } from '../source/pins.ts'
import { isRowSql, partArrays, rowKeySql } from '../source/rows-by-key.ts'
import type { Source } from '../source/sources.ts'
import { isAnyDaemonWorking } from './daemons.ts'
import { formatSpan, type Timing, timingSql } from './departure.ts'

type RowState =
  | 'offloaded'
  | 'nothing_to_offload'
  | 'settling'
  | 'waiting'
  | 'due'
  | 'queued'
  | 'being_worked_on'
  | 'retrying'
  | 'dead_letter'
  | 'pinned'
  | 'paused'
  | 'no_tenant'
  | 'condition_not_met'
  | 'not_queued'

export interface RowStatus {
  state: RowState
  /** One answer for people. */
  says: string
  /** What they can do, if anything. */
  hint: string | null
  row_id: string
  tenant_id: string | null
  /** About how many bytes of text would leave the row, and as what. */
  bytes: number
  kind: string | null
  settles_at: string | null
  /** At the latest; null: not known yet, or nothing leaves. */
  leaves_at: string | null
  /** All that waits of its tenant and kind, with what an object needs (PACK_MIN_BYTES, PACK_TARGET_BYTES). */
  group: { rows: number; bytes: number; min_bytes: number; target_bytes: number } | null
  attempts: number
  next_attempt_at: string | null
  last_error: string | null
  pointers: { artifact_id: string; kind: string; size_bytes: number | null }[]
  daemon_running: boolean
}

/** What is larger is not opened. */
const openBytes = 4 * 1024 * 1024
const shownErrorCharacters = 2000

interface JobFacts {
  place: 'inbox' | 'waiting' | 'lease'
  attempts: number
  priority: number
  conflicts: number
  first_ms: number
  last_ms: number
  /** Of a lease: until when somebody holds it. */
  available_ms: number | null
  last_error: string | null
  waits_for_others: boolean
}

interface Facts {
  row_id: string
  tenant_id: string | null
  type: string | null
  pinned: boolean
  /** Null: when_sql fails on it. */
  may_leave: boolean | null
  pointers: RowStatus['pointers']
  jobs: JobFacts[]
  dead_letter: { attempts: number; last_error: string; failed_at: string } | null
  flushed_ms: number | null
  now_ms: number
}

const ms = (time: string) => `extract(epoch from ${time})::float8 * 1000`

/** Parameters: the row's key, the source's id. */
function factsSql(source: Source, mayLeave: string): string {
  const column = `m.${ident(source.jsonColumn)}`
  return `
    with found as materialized (
      select ${rowKeySql(source)} as row_id, lighter.as_uuid(${tenantSql(source)}::text) as tenant_id,
             ${mayLeave} as may_leave,
             ${
               source.mode === 'document'
                 ? `case when pg_column_size(${column}) < ${openBytes} then ${column} end as doc`
                 : `case when ${column} is null then 'null' else 'value' end as type, ${readPointersSql(source)} as ids`
             }
        from ${fromSql(source)}
       where ${isRowSql(source, '$1::text')}
       limit 1
    ),
    -- Of the inbox the last write counts; of each other place there is one.
    jobs as materialized (
      select j.place, max(j.attempts) as attempts, min(j.priority) as priority, max(j.conflicts) as conflicts, ${ms('min(j.enqueued_at)')} as first_ms,
             ${ms('max(j.enqueued_at)')} as last_ms, ${ms('max(j.available_at)')} as available_ms,
             left(max(j.last_error), ${shownErrorCharacters}) as last_error, bool_or(j.tenant_id is not null) as waits_for_others
        from lighter.jobs j where j.source_id = $2 and j.row_id = (select f.row_id from found f)
       group by j.place
    )
    select f.row_id, f.tenant_id, ${source.mode === 'document' ? 'jsonb_typeof(f.doc)' : 'f.type'} as type,
           ${isPinnedSql(source, 'f.row_id', 'f.tenant_id')} as pinned, f.may_leave,
           (select coalesce(json_agg(json_build_object('artifact_id', a.id, 'kind', a.kind, 'size_bytes', a.size_bytes) order by a.id), '[]')
              from unnest(${source.mode === 'document' ? followedIdsSql(source, 'f.doc') : 'f.ids'}) i(id)
              join public.artifact_refs a on a.tenant_id = f.tenant_id and a.frame_id = lighter.frame_of(i.id) and a.id = i.id) as pointers,
           (select coalesce(json_agg(j), '[]') from jobs j) as jobs,
           (select json_build_object('attempts', d.attempts, 'last_error', left(d.last_error, ${shownErrorCharacters}), 'failed_at', d.failed_at)
              from lighter.failed_jobs d where d.source_id = $2 and d.row_id = f.row_id) as dead_letter,
           (select ${ms('max(x.flushed_at)')} from lighter.flushes x
             where x.source_id = $2 and (x.tenant_id is null or x.tenant_id = f.tenant_id)) as flushed_ms,
           ${ms('clock_timestamp()')} as now_ms
      from found f`
}

/** A row on which when_sql fails has all other facts all the same. */
async function readFacts(db: Queryable, source: Source, rowId: string): Promise<Facts | undefined> {
  const read = async (mayLeave: string) => {
    const { rows } = await db.query<Facts>({ text: factsSql(source, mayLeave), values: [rowId, source.id] })
    return rows[0]
  }
  try {
    return await read(mayLeaveSql(source))
  } catch (error) {
    if (source.whenFunction === null || isNoRowsFault(error)) throw error
    return read('null::boolean')
  }
}

/** @param rowId as the key's type writes it @returns null: there is no such row */
export async function readRowStatus(db: Queryable, source: Source, rowId: string): Promise<RowStatus | null> {
  const facts = await readFacts(db, source, rowId)
  if (facts === undefined) return null
  const { rows: looks } = await db.query<LookRow>({
    // What is in it, whether or not it may leave now.
    text: lookSql({ ...source, whenFunction: null }),
    values: [
      arrayText([facts.row_id]),
      arrayText([facts.now_ms]),
      Math.max(source.maxWaitMs, source.settleMs),
      openBytes,
      openBytes,
      ...partArrays(source, [facts.row_id]),
    ],
  })
  const [look] = looks
  const kind =
    look === undefined || look.bytes === 0 ? null : look.phase === 1 ? source.phase1Kind : source.phase2Kind
  const timings = await db.query<Timing>(timingSql, [source.id])
  const [timing] = timings.rows
  if (timing === undefined) return null
  const group = await readGroup(db, facts.tenant_id, kind)
  const bytes = look?.bytes ?? 0
  const where = place(source, facts, bytes, timing, group)
  const daemonRuns = await isAnyDaemonWorking(db)
  const { settlesMs = null, leavesMs = null, nextMs = null, hint = null, error = null, attempts = 0 } = where
  return {
    state: where.state,
    says: where.says,
    hint: needsDaemon(where.state) && !daemonRuns ? 'No daemon is running. Start one: lighter start' : hint,
    row_id: facts.row_id,
    tenant_id: facts.tenant_id,
    bytes,
    kind,
    settles_at: isoOf(settlesMs),
    leaves_at: isoOf(leavesMs),
    group:
      group === null
        ? null
        : {
            rows: group.rows,
            bytes: group.bytes,
            min_bytes: timing.packMinBytes,
            target_bytes: timing.packTargetBytes,
          },
    attempts,
    next_attempt_at: isoOf(nextMs),
    last_error: error,
    pointers: facts.pointers,
    daemon_running: daemonRuns,
  }
}

interface Group {
  rows: number
  bytes: number
  leavesMs: number | null
}

async function readGroup(db: Queryable, tenantId: string | null, kind: string | null): Promise<Group | null> {
  if (tenantId === null || kind === null) return null
  const { rows } = await db.query<Group>({
    text: `select g.rows::int as rows, g.bytes::float8 as bytes, ${ms('g.leaves_at')} as "leavesMs"
             from lighter.waiting_groups g where g.tenant_id = $1 and g.kind = $2`,
    values: [tenantId, kind],
  })
  return rows[0] ?? { rows: 0, bytes: 0, leavesMs: null }
}

interface Place {
  state: RowState
  says: string
  hint?: string | null
  settlesMs?: number | null
  leavesMs?: number | null
  nextMs?: number | null
  attempts?: number
  error?: string | null
}

/** The first answer that holds. */
function place(source: Source, facts: Facts, bytes: number, timing: Timing, group: Group | null): Place {
  const { jobs, pointers, dead_letter: dead, now_ms: now } = facts
  const of = (name: JobFacts['place']) => jobs.find(job => job.place === name)
  const lease = of('lease')
  const waiting = of('waiting')
  if (facts.tenant_id === null) {
    const from = source.parents.length === 0 ? 'the row' : `its ${source.parents.at(-1)?.tableSql}`
    return {
      state: 'no_tenant',
      says: `It has no tenant: ${source.tenantColumn} of ${from} is null or missing. Such a row stays whole.`,
      hint: 'Give it a tenant, and write the row again.',
    }
  }
  if (lease?.available_ms != null && lease.available_ms > now)
    return {
      state: 'being_worked_on',
      says: 'A daemon is working on it.',
      attempts: lease.attempts,
      error: lease.last_error,
    }
  if (dead !== null && jobs.length === 0)
    return {
      state: 'dead_letter',
      says: `It was given up at ${timeOf(Date.parse(dead.failed_at))} after ${plural(dead.attempts, 'attempt')}, and stays whole: ${oneLine(dead.last_error)}`,
      hint: `Mend the cause, then: lighter retry --table ${source.tableSql} --row ${facts.row_id}`,
      attempts: dead.attempts,
      error: dead.last_error,
    }
  if (facts.pinned)
    return {
      state: 'pinned',
      says: 'It is pinned, by itself or with its tenant: it stays whole.',
      hint: `Let it leave again: lighter unpin --table ${source.tableSql} --row ${facts.row_id}, or --tenant ${facts.tenant_id}`,
    }
  if (waiting?.last_error != null)
    return {
      state: 'retrying',
      says: `${waiting.attempts === 0 ? 'An earlier attempt failed' : `${plural(waiting.attempts, 'attempt')} failed`}; the next one is ${whenOf(waiting.available_ms ?? now, now)}: ${oneLine(waiting.last_error)}`,
      nextMs: waiting.available_ms,
      attempts: waiting.attempts,
      error: waiting.last_error,
    }
  if (bytes === 0) {
    if (pointers.length === 0) return { state: 'nothing_to_offload', says: nothing(source, facts.type) }
    const list = pointers.map(({ artifact_id: id, kind, size_bytes: size }) =>
      size === null ? `${kind} ${id}` : `${kind} ${id} (${formatBytes(size)})`,
    )
    return { state: 'offloaded', says: `It is offloaded. It points to ${list.join(', ')}.` }
  }
  if (source.paused)
    return {
      state: 'paused',
      says: `Its table is paused since somebody restored it: it stays whole${jobs.length > 0 ? ', and queued' : ''}.`,
      hint: `Let the table go on: lighter unpin --all --table ${source.tableSql}`,
    }
  if (facts.may_leave !== true)
    return {
      state: 'condition_not_met',
      says:
        facts.may_leave === null
          ? `It stays whole, since the condition of its table fails on it: ${oneLine(source.whenText ?? '')}.`
          : `It stays whole until the condition of its table holds: ${oneLine(source.whenText ?? '')}. ${source.isScanned ? 'Then a write, or the sweep scan, queues it.' : 'The write that makes it hold queues it.'}`,
      hint: `Change the condition: lighter attach ${source.tableSql} --when <condition>`,
    }
  const written = of('inbox')
  if (written !== undefined)
    return onItsWay(source, facts, bytes, timing, group, {
      firstMs: written.first_ms,
      settlesMs: written.last_ms + timing.settleMs,
      isGrouped: false,
    })
  if (waiting?.waits_for_others === true)
    return onItsWay(source, facts, bytes, timing, group, {
      firstMs: waiting.first_ms,
      settlesMs: waiting.available_ms ?? now,
      isGrouped: true,
    })
  if (waiting !== undefined)
    return {
      state: 'queued',
      says: `It is queued${waiting.priority > 0 ? ' by a backfill, behind the rows that are written now' : waiting.conflicts > 0 ? ' again, since it was changed or locked while a daemon worked on it' : ''}; its turn is ${whenOf(waiting.available_ms ?? now, now)}.`,
      nextMs: waiting.available_ms,
      attempts: waiting.attempts,
    }
  if (lease !== undefined)
    return {
      state: 'queued',
      says: 'The daemon that worked on it stopped or lost it; the next one takes it.',
      attempts: lease.attempts,
      error: lease.last_error,
    }
  return {
    state: 'not_queued',
    says: `About ${formatBytes(bytes)} could leave it, and it is not queued. It was written before its table was attached, by something that fires no triggers, or it was restored.`,
    hint: `lighter backfill --table ${source.tableSql} queues all such rows.`,
  }
}

/** It settles, waits for others, or its turn has come: the rule of src/offload/group.ts and claim-groups.ts. */
function onItsWay(
  source: Source,
  facts: Facts,
  bytes: number,
  timing: Timing,
  group: Group | null,
  row: { firstMs: number; settlesMs: number; isGrouped: boolean },
): Place {
  const now = facts.now_ms
  const { settleMs, maxWaitMs, shipAloneBytes, packMinBytes, packTargetBytes } = timing
  const hint = `Let it leave now: lighter flush --table ${source.tableSql} --tenant ${facts.tenant_id}`
  const isFlushed = facts.flushed_ms !== null && facts.flushed_ms >= row.firstMs
  const settlesMs = Math.min(row.settlesMs, row.firstMs + Math.max(maxWaitMs, settleMs))
  const isAlone = bytes >= shipAloneBytes
  const goesBySelf = isAlone || maxWaitMs === 0
  const due = (says: string): Place => ({ state: 'due', says, leavesMs: now })
  if (isFlushed) return due('Somebody called lighter flush: it leaves as soon as a daemon takes it.')
  if (settlesMs > now) {
    const then = goesBySelf
      ? isAlone
        ? `With about ${formatBytes(bytes)} it then leaves by itself.`
        : 'Then it leaves.'
      : `Then it waits for others of its tenant and kind, which have ${formatBytes(group?.bytes ?? 0)} of ${formatBytes(packTargetBytes)}; after ${formatSpan(maxWaitMs)} ${formatBytes(packMinBytes)} are enough.`
    return {
      state: 'settling',
      says: `It was just written, and settles until ${whenOf(settlesMs, now)}, unless it is written again. ${then}`,
      hint,
      settlesMs,
      leavesMs: goesBySelf ? settlesMs : null,
    }
  }
  if (goesBySelf) return due('Its turn has come: a daemon takes it in a moment.')
  if (!row.isGrouped) return due('It is settled: a daemon looks at it in a moment.')
  const { rows, bytes: gathered, leavesMs } = group ?? { rows: 0, bytes: 0, leavesMs: null }
  if (gathered >= packTargetBytes || (leavesMs !== null && leavesMs <= now))
    return due('Its tenant has enough for an object: a daemon takes it in a moment.')
  const has = `It waits for others, whole. Its tenant has ${formatBytes(gathered)} of its kind in ${plural(rows, 'row')}`
  return {
    state: 'waiting',
    says:
      leavesMs === null
        ? `${has}: less than the ${formatBytes(packMinBytes)} (PACK_MIN_BYTES) that are worth an object. It leaves when they have that and ${formatSpan(maxWaitMs)} have passed, or with ${formatBytes(packTargetBytes)} (PACK_TARGET_BYTES) at once.`
        : `${has}. It leaves when they have ${formatBytes(packTargetBytes)} (PACK_TARGET_BYTES), at the latest ${whenOf(leavesMs, now)}.`,
    hint,
    settlesMs,
    leavesMs,
  }
}

function nothing(source: Source, type: string | null): string {
  if (type === null || type === 'null') return 'There is nothing in it to offload: it is null.'
  if (source.mode !== 'document')
    return `There is nothing in it to offload: it is not over ${formatBytes(source.thresholdBytes)}.`
  if (type !== 'object' && type !== 'array')
    return `There is nothing in it to offload: a ${type} has no room for a pointer.`
  const field =
    source.phase1Field === null
      ? ''
      : ` It has no ${source.phase1Field}${source.minBytes > 0 ? ` of ${formatBytes(source.minBytes)} or more` : ' that is an array or object with anything in it'}, and`
  return `There is nothing in it to offload.${field === '' ? ' It' : field} is not over ${formatBytes(source.thresholdBytes)} of text.`
}

const needsDaemon = (state: RowState) =>
  state === 'settling' || state === 'waiting' || state === 'due' || state === 'queued' || state === 'retrying'

const plural = (count: number, what: string) => `${formatCount(count)} ${what}${count === 1 ? '' : 's'}`
const oneLine = (text: string) => text.replace(/\s+/g, ' ')
const isoOf = (time: number | null) => (time === null ? null : new Date(time).toISOString())
const timeOf = (time: number) => `${new Date(time).toISOString().slice(0, 19).replace('T', ' ')} UTC`
const whenOf = (time: number, now: number) =>
  time <= now ? 'now' : `${timeOf(time)}, in ${formatSpan(time - now)}`
