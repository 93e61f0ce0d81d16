// Reads payloads back in bounded memory, and says of each what was found.
import { finished } from 'node:stream/promises'
import pLimit from 'p-limit'
import { fetchPayloads, streamPayload } from '../artifacts/fetch.ts'
import { LighterError, messageOf, StoreError } from '../errors.ts'
import type { SweepContext } from './context.ts'
import type { Checkable } from './verify-choose.ts'

export type Finding =
  | { artifact: Checkable; outcome: 'well'; damage: null; error: null }
  | { artifact: Checkable; outcome: 'damaged'; damage: string; error: LighterError }
  /** Nothing is known: the store did not answer, or refused. */
  | { artifact: Checkable; outcome: 'unread'; damage: null; error: LighterError }

/** Requests at once: the application's reads go before. */
const concurrency = 8

/**
 * Small ones are fetched together, a read for each frame, so much at once as a batch of the pipeline holds; long
 * ones, and those of which the row does not say how long they are, are streamed.
 * @returns null when stopped before the end
 */
export async function readBack(context: SweepContext, batch: Checkable[]): Promise<Finding[] | null> {
  const { store, offload, signal } = context
  const isLong = (a: Checkable) => a.sizeBytes === null || a.sizeBytes > offload.streamThresholdBytes
  const findings: Finding[] = []
  for (const chunk of chunksOf(
    batch.filter(a => !isLong(a)),
    offload.batchBytes,
  )) {
    if (signal.aborted) return null
    const payloads = await fetchPayloads(store, chunk, {
      concurrency,
      maxPayloadBytes: offload.streamThresholdBytes,
    })
    for (const artifact of chunk) {
      const payload = payloads.get(artifact)
      findings.push(findingOf(artifact, payload instanceof LighterError ? payload : null))
    }
  }
  const limit = pLimit(offload.streamConcurrency)
  const streamed = await Promise.all(
    batch
      .filter(isLong)
      .map(artifact =>
        limit(async () =>
          signal.aborted ? null : findingOf(artifact, await readThrough(context, artifact)),
        ),
      ),
  )
  for (const finding of streamed) {
    if (finding === null) return null
    findings.push(finding)
  }
  return findings
}

async function readThrough({ store }: SweepContext, artifact: Checkable): Promise<LighterError | null> {
  try {
    await finished((await streamPayload(store, artifact)).resume())
    return null
  } catch (error) {
    if (error instanceof LighterError) return error
    return new StoreError('store_unavailable', messageOf(error), { cause: error, retryable: true })
  }
}

function findingOf(artifact: Checkable, error: LighterError | null): Finding {
  if (error === null) return { artifact, outcome: 'well', damage: null, error: null }
  if (isDamage(error)) {
    return { artifact, outcome: 'damaged', damage: `${error.code}: ${error.message}`.slice(0, 1000), error }
  }
  return { artifact, outcome: 'unread', damage: null, error }
}

const damageCodes = new Set([
  'artifact_corrupt',
  'artifact_object_missing',
  'artifact_foreign_key',
  'artifact_encoding_unknown',
])

/** Whether the error says that the artifact itself is not as it was stored. */
export function isDamage(error: LighterError): boolean {
  return damageCodes.has(error.code)
}

/** Cut at about `maxBytes` of payload, between frames. */
function* chunksOf(artifacts: Checkable[], maxBytes: number): Generator<Checkable[]> {
  let chunk: Checkable[] = []
  let bytes = 0
  for (const frame of Map.groupBy(artifacts, a => `${a.key}@${a.byteOffset ?? ''}`).values()) {
    const frameBytes = frame.reduce((sum, a) => sum + (a.sizeBytes ?? 0), 0)
    if (chunk.length > 0 && bytes + frameBytes > maxBytes) {
      yield chunk
      chunk = []
      bytes = 0
    }
    chunk.push(...frame)
    bytes += frameBytes
  }
  if (chunk.length > 0) yield chunk
}
