// Work that holds memory or connections: a bounded number of it at once, and of each tenant only a share, so that one
// can't shut the others out. A slot is held until the answer has left, or the client has.
import { type Readable, Transform } from 'node:stream'
import type { TenantId } from '../ids.ts'
import { ApiError } from './errors.ts'
import { createShares } from './shares.ts'

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

/** @param perTenant slots that one tenant may have at once; one is kept for each of the first tenants that come */
export function createGate(slots: number, perTenant: number): Gate {
  const shares = createShares(slots, perTenant, 1)
  const waiting: Waiter[] = []

  const take = (tenantId: TenantId) => {
    const giveBack = shares.take(tenantId, 1)
    return () => {
      giveBack()
      // In the order they came, but for those whose tenant has all it may.
      const next = waiting.findIndex(waiter => shares.fits(waiter.tenantId, 1))
      if (next >= 0) waiting.splice(next, 1)[0]?.start()
    }
  }

  return {
    enter: tenantId => {
      if (shares.fits(tenantId, 1)) return Promise.resolve(take(tenantId))
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

/** Bytes of request bodies that are held at once: by all, and by one tenant. They count as they arrive. */
export interface ByteBudget {
  /**
   * The body as it comes; it fails with {ApiError} 503 `overloaded` where there is no room for more of it.
   * @param onReleased calls its listener when the body is held no longer
   */
  charge(tenantId: TenantId, body: Readable, onReleased: (listener: () => void) => void): ChargedBody
}

/** What Fastify wants of a stream that it reads in place of the request. */
type ChargedBody = Transform & { receivedEncodedLength: number }

/** @param reserve bytes that are kept for each of the first tenants that come */
export function createByteBudget(total: number, perTenant: number, reserve: number): ByteBudget {
  const shares = createShares(total, perTenant, reserve)
  return {
    charge: (tenantId, body, onReleased) => {
      const held: (() => void)[] = []
      const charged = Object.assign(
        new Transform({
          transform(chunk: Buffer, _encoding, done) {
            charged.receivedEncodedLength += chunk.length
            if (!shares.fits(tenantId, chunk.length)) return done(overloaded())
            held.push(shares.take(tenantId, chunk.length))
            done(null, chunk)
          },
        }),
        { receivedEncodedLength: 0 },
      )
      // Whoever reads it stops listening at the first error, or when the body is too long.
      charged.on('error', () => undefined)
      onReleased(() => {
        charged.destroy()
        for (const giveBack of held.splice(0)) giveBack()
      })
      // No pipeline: that would destroy the request, and its connection, before the refusal is written.
      body.once('error', error => charged.destroy(error))
      return body.pipe(charged)
    },
  }
}

function overloaded(): ApiError {
  return new ApiError(503, 'overloaded', 'too many requests of this kind at once: try again in a moment')
}
