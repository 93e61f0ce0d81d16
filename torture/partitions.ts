// An operator who makes partitions of the events, detaches them, attaches them again and drops them, while all else goes on.
import { setTimeout as sleep } from 'node:timers/promises'
import type pg from 'pg'
import { between, chance, pick, type Random } from '../src/demo/random.ts'
import { isDatabaseOutage, isTransactionConflict, sqlState } from '../src/errors.ts'
import type { Counts } from './report.ts'

const partitionsAtMost = 8
const partitionsAtLeast = 3
/** A lock that is waited for keeps everybody else from the table. */
const lockTimeoutMs = 1000
/** Now and then: what is released meanwhile is deleted meanwhile, too. */
const longDetachedMs = 25_000
const lockTimedOut = '55P03'

interface Partition {
  name: string
  attached: boolean
  /** What is detached before the daemons have put it on record is not missed: docs/operations.md, rows out of sight. */
  recorded: boolean
}

interface PartitionsOptions {
  admin: pg.Pool
  random: Random
  counts: Counts
}

export async function runPartitions(options: PartitionsOptions, signal: AbortSignal): Promise<void> {
  const { admin, random, counts } = options
  let day = 5
  let attachAt = 0
  const act = async (what: string, call: string, values: unknown[]) => {
    if (await change(admin, call, values)) counts[what] = (counts[what] ?? 0) + 1
  }
  while (!signal.aborted) {
    await sleep(between(random, 300, 3000), undefined, { signal }).catch(() => undefined)
    if (signal.aborted) return
    try {
      const partitions = await partitionsNow(admin)
      // At most one at a time: what is forgotten must not be what is only detached.
      const detached = partitions.find(({ attached }) => !attached)
      const known = partitions.filter(({ attached, recorded }) => attached && recorded)
      if (detached !== undefined) {
        if (performance.now() < attachAt) continue
        const drop = chance(random, 0.3) && partitions.length > partitionsAtLeast
        await (drop
          ? act('drop detached partition', 'drop_partition($1)', [detached.name])
          : act('attach partition', 'attach_partition($1)', [detached.name]))
      } else {
        await forgetDropped(admin)
        if (partitions.length < partitionsAtMost && chance(random, 0.4)) {
          await act('new partition', `add_partition(date '2026-01-01' + $1::int)`, [day])
          day++
        } else if (known.length > 0) {
          const { name } = pick(random, known)
          if (partitions.length > partitionsAtLeast && chance(random, 0.2))
            await act('drop partition', 'drop_partition($1)', [name])
          else {
            attachAt = performance.now() + (chance(random, 0.3) ? longDetachedMs : 0)
            await act('detach partition', 'detach_partition($1)', [name])
          }
        }
      }
    } catch (error) {
      if (!isDatabaseOutage(error) && !isTransactionConflict(error) && sqlState(error) !== lockTimedOut)
        throw error
    }
  }
}

/** At the end: all that are there are attached, and those that are gone are known to be. */
export async function settlePartitions(admin: pg.Pool): Promise<void> {
  for (const { name, attached } of await partitionsNow(admin))
    if (!attached) await change(admin, 'attach_partition($1)', [name])
  await forgetDropped(admin)
}

/** Detaches one for as long as `run` takes: rows out of sight are not deleted. */
export async function withoutPartition(admin: pg.Pool, run: () => Promise<unknown>): Promise<void> {
  await admin.query('select lighter.note_partitions()')
  const [partition] = await partitionsNow(admin)
  if (partition === undefined) return
  await change(admin, 'detach_partition($1)', [partition.name])
  await run()
  await change(admin, 'attach_partition($1)', [partition.name])
}

async function partitionsNow(admin: pg.Pool): Promise<Partition[]> {
  const { rows } = await admin.query<Partition>(
    `select p.name, p.attached,
            (select count(*) from lighter.source_partitions s
              where s.relation = to_regclass(format('public.%I', p.name))) = 2 as recorded
       from torture.partitions p order by p.starts`,
  )
  return rows
}

/** Rows of a partition that was dropped were deleted on purpose. */
async function forgetDropped(admin: pg.Pool): Promise<void> {
  await admin.query(
    `select lighter.forget_missing(s.id) from lighter.sources s
      where s.relation = 'public.events'::regclass
        and exists (select from lighter.missing_parts m where m.source_id = s.id)`,
  )
}

async function change(admin: pg.Pool, call: string, values: unknown[]): Promise<boolean> {
  const client = await admin.connect()
  let broken: Error | undefined
  try {
    await client.query('begin')
    await client.query(`set local lock_timeout = ${lockTimeoutMs}`)
    const { rows } = await client.query<{ done: boolean }>(`select torture.${call} as done`, values)
    await client.query('commit')
    return rows[0]?.done === true
  } catch (error) {
    broken = error instanceof Error ? error : new Error(String(error))
    throw error
  } finally {
    client.release(broken)
  }
}
