// Step 1: take queued rows by deleting them where they are, into a lease, in one transaction. A daemon that dies leaves
// the lease to run out.
//
// No claim waits for its commit to be on disk: one that a crash of the server undoes is only done again.
import { randomUUID } from 'node:crypto'
import type pg from 'pg'
import { arrayText } from '../db/array-text.ts'
import { inTransactionWithRetry, type Queryable } from '../db/pool.ts'
import { type Source, waitsForOthers } from '../source/sources.ts'
import { type Claimed, insertLease, type Lease, leaseOf } from './lease.ts'

/** From this priority on rows go only when nothing else is to be done. Rows of a backfill have it. */
export const backfillPriority = 10

const notTriedYet = { attempts: 1, conflicts: 0, priority: 0, error: null, waited: null }

const lazySql = `lazy as materialized (select set_config('synchronous_commit', 'off', true))`

/**
 * Takes the entries that `due` names, and leases their rows: parameters 1 and 2. A row that has several is leased once. One
 * that waits for another attempt goes on waiting, however often it is written meanwhile: each attempt costs an upload.
 */
const takeEntriesSql = (due: string) => `
  with ${lazySql},
  due as materialized (${due}),
  taken as (
    delete from lighter.inbox i using due where i.id = due.id returning i.id, i.source_id, i.row_id, i.enqueued_at, i.xmin as written_by
  ),
  later as materialized (
    select w.source_id, w.row_id from lighter.waiting w
      join (select distinct source_id, row_id from taken) t using (source_id, row_id)
     where w.available_at > now() and (w.conflicts > 0 or w.attempts > 0)
       for share of w skip locked
  ),
  jobs as materialized (
    select t.source_id, t.row_id, min(t.enqueued_at) as enqueued_at, max(t.id) as id, count(*) as entries,
           -- whoever wrote the row last, and how long ago
           (array_agg(t.written_by::text order by t.id desc))[1] as written_by,
           (array_agg(now() - t.enqueued_at order by t.id desc))[1] as age
      from taken t
     where not exists (select from later l where l.source_id = t.source_id and l.row_id = t.row_id)
     group by t.source_id, t.row_id order by min(t.id)
  ),
  lease as (
    insert into lighter.leases (id, until, source_ids, row_ids, enqueued_at)
    select $1, now() + $2 * interval '1 ms', array_agg(source_id), array_agg(row_id), array_agg(enqueued_at)
      from jobs having count(*) > 0
  )
  select source_id as "sourceId", row_id as "rowId", extract(epoch from enqueued_at)::float8 * 1000 as "enqueuedMs", id::float8 as id,
         entries::int as entries, written_by as "writtenBy", extract(epoch from age)::float8 * 1000 as "ageMs"
    from jobs`

export interface InboxClaim {
  lease: Lease | null
  /** How many entries were taken: a row may have several. */
  entries: number
  lastId: number
}

interface TakenRow {
  sourceId: number
  rowId: string
  enqueuedMs: number
  id: number
  entries: number
  writtenBy: string
  ageMs: number
}

/** No transaction: no row has been written by it. */
const nobody = '0'

/** @param settleMs of a source: what is younger is not settled, whoever wrote it */
async function takeEntries(
  db: Queryable,
  due: string,
  values: unknown[],
  leaseMs: number,
  settleMs: (sourceId: number) => number = () => 0,
): Promise<InboxClaim> {
  const id = randomUUID()
  const { rows } = await db.query<TakenRow>({
    text: takeEntriesSql(due),
    values: [id, leaseMs, ...values],
  })
  if (rows.length === 0) return { lease: null, entries: 0, lastId: 0 }
  return {
    lease: leaseOf(
      id,
      rows.map(({ sourceId, rowId, enqueuedMs, writtenBy, ageMs }) => ({
        sourceId,
        rowId,
        enqueuedMs,
        dueMs: enqueuedMs,
        writtenBy: ageMs < settleMs(sourceId) ? nobody : writtenBy,
        ...notTriedYet,
      })),
    ),
    entries: rows.reduce((sum, row) => sum + row.entries, 0),
    lastId: rows.reduce((last, row) => Math.max(last, row.id), 0),
  }
}

/**
 * Up to `limit` of the oldest entries of the given sources, but those that others are just taking.
 * @param after only what has a higher id: so dead entries are not read over again and again
 */
export function claimInbox(
  db: Queryable,
  sourceIds: number[],
  limit: number,
  leaseMs: number,
  after = 0,
): Promise<InboxClaim> {
  const due = `
    select i.id from lighter.inbox i, lazy
     where i.id > $5 and i.source_id = any ($3::int[])
     order by i.id limit $4 for update of i skip locked`
  return takeEntries(db, due, [sourceIds, limit, after], leaseMs)
}

type Settling = Pick<Source, 'id' | 'settleMs'>

/** A CTE `until`: for each source, up to when entries are settled. Parameters 3 and 4. */
const untilSql = `
  until as materialized (
    select s.id, greatest(now() - s.settle_ms * interval '1 ms', (select max(f.flushed_at) from lighter.flushes f where f.source_id = s.id)) as at
      from unnest($3::int[], $4::float8[]) s(id, settle_ms))`

/**
 * As `claimInbox`, of entries that are as old as their sources want, and of all that were written before a flush: that may
 * be one of another tenant.
 */
export function claimSettled(
  db: Queryable,
  sources: Settling[],
  limit: number,
  leaseMs: number,
  after = 0,
): Promise<InboxClaim> {
  // A sub-select, and no join: in the order of the index, as far as the limit.
  const due = `
    with ${untilSql}
    select i.id from lighter.inbox i, lazy
     where i.id > $6 and i.enqueued_at <= (select u.at from until u where u.id = i.source_id)
     order by i.id limit $5 for update of i skip locked`
  const values = [sources.map(s => s.id), sources.map(s => s.settleMs), limit, after]
  const settling = new Map(sources.map(s => [s.id, s.settleMs]))
  return takeEntries(db, due, values, leaseMs, id => settling.get(id) ?? 0)
}

/** Given entries, but those that others have taken. */
export async function claimEntries(db: Queryable, ids: number[], leaseMs: number): Promise<Lease | null> {
  const due = `
    select i.id from lighter.inbox i, lazy where i.id = any ($3::bigint[]) for update of i skip locked`
  return (await takeEntries(db, due, [arrayText(ids)], leaseMs)).lease
}

type ClaimedRow = Omit<Claimed, 'dueMs' | 'writtenBy' | 'waited'>

const toClaimed = (row: ClaimedRow): Claimed => ({
  ...row,
  dueMs: row.enqueuedMs,
  writtenBy: null,
  waited: null,
})

/**
 * Rows that have waited for their turn, and not for others, the most urgent first.
 * @param below only rows of a lower priority
 */
export async function claimWaiting(
  db: Queryable,
  sourceIds: number[],
  limit: number,
  leaseMs: number,
  below = 32_767,
): Promise<Lease | null> {
  const id = randomUUID()
  const { rows } = await db.query<ClaimedRow>({
    text: `
      with ${lazySql},
      due as materialized (
        select w.source_id, w.row_id from lighter.waiting w, lazy
         where w.tenant_id is null and w.available_at <= now() and w.priority < $5 and w.source_id = any ($3::int[])
         order by w.priority, w.available_at limit $4 for update of w skip locked
      ),
      taken as materialized (
        delete from lighter.waiting w using due where w.source_id = due.source_id and w.row_id = due.row_id
        returning w.source_id, w.row_id, w.priority, w.available_at, w.enqueued_at, w.attempts, w.conflicts, w.last_error
      ),
      jobs as materialized (select * from taken order by priority, available_at),
      lease as (
        insert into lighter.leases (id, until, source_ids, row_ids, enqueued_at, priorities, attempts, conflicts, errors)
        select $1, now() + $2 * interval '1 ms', array_agg(source_id), array_agg(row_id), array_agg(enqueued_at),
               array_agg(priority), array_agg(attempts), array_agg(conflicts), array_agg(last_error)
          from jobs having count(*) > 0
      )
      select source_id as "sourceId", row_id as "rowId", extract(epoch from enqueued_at)::float8 * 1000 as "enqueuedMs", priority,
             attempts + 1 as attempts, conflicts, last_error as error
        from jobs`,
    values: [id, leaseMs, sourceIds, limit, below],
  })
  return rows.length === 0 ? null : leaseOf(id, rows.map(toClaimed))
}

/**
 * A lease that has run out, or that nobody holds. One that has run out is split: the first half is what is claimed, the
 * second is left for whoever comes next. A row on which daemons die is thereby alone in the end, and an attempt counts
 * only against a row that was alone.
 * @returns null when there is none; its jobs, of which those with more attempts than allowed are to be given up
 */
export async function claimExpired(pool: pg.Pool, leaseMs: number): Promise<Lease | null> {
  return inTransactionWithRetry(pool, async db => {
    for (;;) {
      // One that an erasure took away had lost rows before; the other half of one that ran out has not.
      const { rows: found } = await db.query<{ id: string; ranOut: boolean; wasTaken: boolean }>(
        `select id, until is not null as "ranOut", until is null and done <> '{}' as "wasTaken" from lighter.leases
          where until is null or until < now()
          order by until nulls first limit 1 for update skip locked`,
      )
      const [expired] = found
      if (expired === undefined) return null
      const { rows: claimed } = await db.query<ClaimedRow>(
        `select j.source_id as "sourceId", j.row_id as "rowId", extract(epoch from j.enqueued_at)::float8 * 1000 as "enqueuedMs",
                coalesce(j.priority, 0) as priority, coalesce(j.attempts, 0) + 1 as attempts, coalesce(j.conflicts, 0) as conflicts,
                j.error
           from lighter.leases l
          cross join lateral unnest(l.source_ids, l.row_ids, l.enqueued_at, l.priorities, l.attempts, l.conflicts, l.errors)
                               with ordinality j(source_id, row_id, enqueued_at, priority, attempts, conflicts, error, ord)
          where l.id = $1 and j.ord <> all (l.done)
          order by j.ord`,
        [expired.id],
      )
      await db.query('delete from lighter.leases where id = $1', [expired.id])
      const rows = claimed.map(toClaimed)
      const [only] = rows
      if (only === undefined) continue
      const id = randomUUID()
      if (!expired.ranOut || rows.length === 1) {
        if (expired.ranOut) only.attempts++
        await insertLease(db, id, rows, leaseMs)
        return leaseOf(id, rows, {
          suspect: rows.length === 1 && only.attempts > 1,
          ranOut: !expired.wasTaken,
        })
      }
      const middle = Math.ceil(rows.length / 2)
      await insertLease(db, id, rows.slice(0, middle), leaseMs)
      await insertLease(db, randomUUID(), rows.slice(middle), null)
      return leaseOf(id, rows.slice(0, middle), { isHalf: true, ranOut: true })
    }
  })
}

/**
 * True if a claim would find something, groups of rows that wait for others apart.
 * @param settling sources of which entries that are settled count
 */
export async function hasDueJobs(db: Queryable, sources: Source[], settling: Settling[]): Promise<boolean> {
  const { rows } = await db.query<{ due: boolean }>({
    // With nothing that may be worked on, nothing is due.
    text: `with ${untilSql}
           select cardinality($1::int[]) > 0 and (
                  exists (select from lighter.inbox where source_id = any ($2::int[]))
               or cardinality($3::int[]) > 0
                  and exists (select from lighter.inbox i where i.enqueued_at <= (select u.at from until u where u.id = i.source_id))
               or exists (select from lighter.waiting where tenant_id is null and available_at <= now() and source_id = any ($1::int[]))
               or exists (select from lighter.leases where until is null or until < now())) as due`,
    values: [
      sources.map(s => s.id),
      sources.filter(s => !waitsForOthers(s)).map(s => s.id),
      settling.map(s => s.id),
      settling.map(s => s.settleMs),
    ],
  })
  return rows[0]?.due === true
}
