// Whose large row is streamed next. A stream takes seconds, and one tenant's thousand of them must not keep another
// tenant's only one waiting: the line is served by turns of tenants.

/** Rows in work or waiting, per stream; a tenant that has none in line may put in one beyond that. */
const rowsPerStream = 4
const tenantsBeyond = 16

/** A row that was turned away comes back when its turn is likely to be near. */
const minReturnMs = 500
const maxReturnMs = 30_000
/** How long a stream takes is learnt; until then it is thought to take this long. */
const firstStreamMs = 2000

export interface Turns {
  /** Runs `work` when it is the tenant's turn: before it, each other tenant in line has had one at most. */
  run<T>(tenantId: string, work: () => Promise<T>): Promise<T>
  /** @param ahead tenants of rows that are about to be in line too */
  mayWait(tenantId: string, ahead: string[]): boolean
  /** When a row should come back with `ahead` others beside those in line. */
  returnMs(ahead: number): number
}

export function createTurns(streams: number): Turns {
  let waiting: { tenantId: string; begin: () => void }[] = []
  const active: string[] = []
  let streamMs = firstStreamMs

  const next = () => {
    const [first] = waiting
    if (first === undefined || active.length >= streams) return
    const { tenantId } = first
    // What else the tenant has in line goes behind all others.
    const others = waiting.filter(each => each.tenantId !== tenantId)
    const own = waiting.filter(each => each.tenantId === tenantId && each !== first)
    waiting = [...others, ...own]
    active.push(tenantId)
    first.begin()
  }

  return {
    run: async (tenantId, work) => {
      await new Promise<void>(begin => {
        waiting.push({ tenantId, begin })
        next()
      })
      const began = performance.now()
      try {
        return await work()
      } finally {
        streamMs = streamMs * 0.7 + (performance.now() - began) * 0.3
        active.splice(active.indexOf(tenantId), 1)
        next()
      }
    },
    mayWait: (tenantId, ahead) => {
      const inLine = [...active, ...waiting.map(each => each.tenantId), ...ahead]
      const limit = rowsPerStream * streams
      return inLine.length < limit || (inLine.length < limit + tenantsBeyond && !inLine.includes(tenantId))
    },
    returnMs: ahead => {
      const turnsAhead = active.length + waiting.length + ahead
      return Math.min(Math.max((streamMs * turnsAhead) / streams, minReturnMs), maxReturnMs)
    },
  }
}
