// Says in the log that rows were noticed, and when they will leave: else whoever writes a first heavy row sees nothing for a
// minute. Only of sources whose rows wait, when the daemon is about to sleep, and a line a minute for each at most.
import type { Logger } from 'pino'
import { arrayText } from '../db/array-text.ts'
import type { Queryable } from '../db/pool.ts'
import { describeDeparture, type Timing } from '../reports/departure.ts'
import { type Source, waitsForOthers } from '../source/sources.ts'

const everyMs = 60_000
/** Entries that a look reads; the next one goes on behind them. */
const mostEntries = 10_000

export interface Arrivals {
  /** What came into the inbox since it looked last. */
  look(sources: Source[]): Promise<void>
}

interface Arrived {
  sourceId: number
  rows: number
  firstAt: Date
  lastId: number
}

export function createArrivals(
  db: Queryable,
  log: Logger,
  packs: Pick<Timing, 'packTargetBytes' | 'packMinBytes'>,
): Arrivals {
  /** What a transaction that ends late puts below it is not told of. */
  let mark = 0
  const unsaid = new Map<number, { rows: number; firstAt: Date }>()
  const saidAt = new Map<number, number>()

  const say = (source: Source, rows: number, firstAt: Date) => {
    const after = (ms: number) => new Date(firstAt.getTime() + ms).toISOString()
    log.info(
      {
        source: source.tableSql,
        rows,
        settledAt: after(source.settleMs),
        leavesAt: after(Math.max(source.settleMs, source.maxWaitMs)),
      },
      `noticed ${rows} ${rows === 1 ? 'row' : 'rows'} of ${source.tableSql}. ${describeDeparture('They', { ...source, ...packs })} To let them leave now: lighter flush`,
    )
  }

  return {
    look: async sources => {
      const waiters = sources.filter(waitsForOthers)
      if (waiters.length === 0) return
      const { rows } = await db.query<Arrived>({
        text: `
          select i.source_id as "sourceId", count(distinct i.row_id)::int as rows, min(i.enqueued_at) as "firstAt", max(i.id)::float8 as "lastId"
            from (select x.id, x.source_id, x.row_id, x.enqueued_at from lighter.inbox x
                   where x.id > $1 order by x.id limit ${mostEntries}) i
           where i.source_id = any ($2::int[])
           group by i.source_id`,
        values: [mark, arrayText(waiters.map(source => source.id))],
      })
      for (const { sourceId, rows: count, firstAt, lastId } of rows) {
        mark = Math.max(mark, lastId)
        const before = unsaid.get(sourceId)
        unsaid.set(sourceId, { rows: count + (before?.rows ?? 0), firstAt: before?.firstAt ?? firstAt })
      }
      for (const source of waiters) {
        const news = unsaid.get(source.id)
        const sinceMs = performance.now() - (saidAt.get(source.id) ?? Number.NEGATIVE_INFINITY)
        if (news === undefined || sinceMs < everyMs) continue
        unsaid.delete(source.id)
        saidAt.set(source.id, performance.now())
        say(source, news.rows, news.firstAt)
      }
    },
  }
}
