// The client's two hydrating methods as functions, for code that is handed its client.
import type { HydrateManyOptions, HydrateOptions, LighterClient } from './client.ts'

type Hydrater = Pick<LighterClient, 'hydrate' | 'hydrateMany'>

/**
 * A copy of the row with its metadata as it was before offloading; a row without pointers as it is.
 * @param client of `createLighterClient`
 * @throws {LighterError} as `LighterClient.hydrate`
 */
export async function hydrate<R extends object>(
  client: Hydrater,
  row: R,
  options?: HydrateOptions,
): Promise<R> {
  return requireClient(client).hydrate(row, options)
}

/**
 * Many rows, in their order.
 * @param client of `createLighterClient`
 * @throws {HydrateError} as `LighterClient.hydrateMany`
 */
export async function hydrateMany<R extends object>(
  client: Hydrater,
  rows: readonly R[],
  options?: HydrateManyOptions<R>,
): Promise<R[]> {
  return requireClient(client).hydrateMany(rows, options)
}

function requireClient(client: Hydrater): Hydrater {
  if (typeof client?.hydrateMany === 'function') return client
  throw new TypeError('the first argument must be a client: hydrate(createLighterClient({ … }), row)')
}
