// Work that holds memory or connections: a bounded number of it at once, and of each tenant only a share, so that one
// can't shut the others out. A slot is held until the answer has left, or the client has.
import type { TenantId } from '../ids.ts'
import { ApiError } from './errors.ts'

export interface Gate {
  /**
   * Waits for a slot. The result gives it back; calling it again does nothing.
   * @throws {ApiError} 503 `overloaded`, when too many of the tenant's wait already, or it takes too long
   */
  enter(tenantId: TenantId): Promise<() => void>
}

/** How many of a tenant may wait for each slot that it may have. */
const waitingPerSlot = 4
const longestWaitMs = 15_000

interface Waiter {
  tenantId: TenantId
  start: () => void
}

/** @param perTenant slots that one tenant may have at once */
export function createGate(slots: number, perTenant: number): Gate {
  let used = 0
  const usedBy = new Map<TenantId, number>()
  const waiting: Waiter[] = []

  const isFree = (tenantId: TenantId) => used < slots && (usedBy.get(tenantId) ?? 0) < perTenant

  const take = (tenantId: TenantId) => {
    used++
    usedBy.set(tenantId, (usedBy.get(tenantId) ?? 0) + 1)
    let given = false
    return () => {
      if (given) return
      given = true
      used--
      const left = (usedBy.get(tenantId) ?? 1) - 1
      if (left === 0) usedBy.delete(tenantId)
      else usedBy.set(tenantId, left)
      // In the order they came, but for those whose tenant has all it may.
      const next = waiting.findIndex(waiter => isFree(waiter.tenantId))
      if (next >= 0) waiting.splice(next, 1)[0]?.start()
    }
  }

  return {
    enter: tenantId => {
      if (isFree(tenantId)) return Promise.resolve(take(tenantId))
      if (waiting.filter(waiter => waiter.tenantId === tenantId).length >= perTenant * waitingPerSlot) {
        return Promise.reject(overloaded())
      }
      return new Promise((resolve, reject) => {
        const waiter: Waiter = {
          tenantId,
          start: () => {
            clearTimeout(timer)
            resolve(take(tenantId))
          },
        }
        const timer = setTimeout(() => {
          const at = waiting.indexOf(waiter)
          if (at < 0) return
          waiting.splice(at, 1)
          reject(overloaded())
        }, longestWaitMs)
        waiting.push(waiter)
      })
    },
  }
}

/** Bytes of request bodies that are held at once: by all, and by one tenant. */
export interface ByteBudget {
  /** @throws {ApiError} 503 `overloaded`, when there is no room */
  take(tenantId: TenantId, bytes: number): () => void
}

export function createByteBudget(total: number, perTenant: number): ByteBudget {
  let used = 0
  const usedBy = new Map<TenantId, number>()
  return {
    take: (tenantId, bytes) => {
      const before = usedBy.get(tenantId) ?? 0
      if (used + bytes > total || before + bytes > perTenant) throw overloaded()
      used += bytes
      usedBy.set(tenantId, before + bytes)
      let given = false
      return () => {
        if (given) return
        given = true
        used -= bytes
        const left = (usedBy.get(tenantId) ?? bytes) - bytes
        if (left <= 0) usedBy.delete(tenantId)
        else usedBy.set(tenantId, left)
      }
    },
  }
}

function overloaded(): ApiError {
  return new ApiError(503, 'overloaded', 'too many requests of this kind at once: try again in a moment')
}
