// How much of something each tenant may have, so that a few tenants can't shut the others out.

export interface Shares {
  /** Whether the tenant may have this much more now. */
  fits(tenantId: string, amount: number): boolean
  /** The amount must fit. The result gives it back; calling it again does nothing. */
  take(tenantId: string, amount: number): () => void
}

interface Holding {
  used: number
  hasReserve: boolean
}

/**
 * Half of the total is shared, first come, first served. The other half is cut into reserves, one for each tenant that
 * comes: so the shared half may be used up, and a tenant that has nothing yet still gets its reserve.
 *
 * @param perTenant the most that one tenant may have
 * @param reserve size of one reserve
 */
export function createShares(total: number, perTenant: number, reserve: number): Shares {
  let reservesLeft = Math.floor(total / 2 / reserve)
  const shared = total - reservesLeft * reserve
  let sharedUsed = 0
  const holdings = new Map<string, Holding>()

  const fromShared = ({ used, hasReserve }: Holding) => Math.max(0, used - (hasReserve ? reserve : 0))

  /** What the tenant would have with `amount` more. A reserve that is free goes to whoever asks without one. */
  const grown = (tenantId: string, amount: number): Holding => {
    const { used, hasReserve } = holdings.get(tenantId) ?? { used: 0, hasReserve: false }
    return { used: used + amount, hasReserve: hasReserve || reservesLeft > 0 }
  }

  const change = (tenantId: string, next: Holding) => {
    const before = holdings.get(tenantId) ?? { used: 0, hasReserve: false }
    const after = next.used <= 0 ? { used: 0, hasReserve: false } : next
    sharedUsed += fromShared(after) - fromShared(before)
    reservesLeft += Number(before.hasReserve) - Number(after.hasReserve)
    if (after.used === 0) holdings.delete(tenantId)
    else holdings.set(tenantId, after)
  }

  return {
    fits: (tenantId, amount) => {
      const before = holdings.get(tenantId) ?? { used: 0, hasReserve: false }
      const after = grown(tenantId, amount)
      return after.used <= perTenant && sharedUsed + fromShared(after) - fromShared(before) <= shared
    },
    take: (tenantId, amount) => {
      change(tenantId, grown(tenantId, amount))
      let given = false
      return () => {
        if (given) return
        given = true
        const { used = 0, hasReserve = false } = holdings.get(tenantId) ?? {}
        change(tenantId, { used: used - amount, hasReserve })
      }
    },
  }
}
