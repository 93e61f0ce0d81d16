// Long work on the one thread that serves everybody: one step per pass of the event loop, and tenants take turns,
// however many requests one of them has at work.

/** Resolves when the tenant may make its next step. */
export type FairPause = (tenantId: string) => Promise<void>

export function createFairPause(): FairPause {
  /** Of each tenant that waits, its requests in their order; a tenant that had its turn goes to the end. */
  const waiting = new Map<string, (() => void)[]>()
  let scheduled = false

  const serveOne = () => {
    const [first] = waiting
    scheduled = false
    if (first === undefined) return
    const [tenantId, [begin, ...others]] = first
    waiting.delete(tenantId)
    if (others.length > 0) waiting.set(tenantId, others)
    schedule()
    begin?.()
  }
  const schedule = () => {
    if (scheduled || waiting.size === 0) return
    scheduled = true
    setImmediate(serveOne)
  }

  return tenantId =>
    new Promise(begin => {
      waiting.set(tenantId, [...(waiting.get(tenantId) ?? []), begin])
      schedule()
    })
}
