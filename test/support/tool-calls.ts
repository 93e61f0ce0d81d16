// Messages that are worth offloading, of a size that Postgres does not compress away.
import { randomUUID } from 'node:crypto'
import { insertMessage, rawMetadata, type TestEnvironment } from './environment.ts'

/** Text that does not compress to nothing. */
export const noiseText = (bytes: number): string =>
  Array.from({ length: Math.ceil(bytes / 36) }, () => randomUUID())
    .join('')
    .slice(0, bytes)

/** Metadata with one tool call whose text has so many bytes. */
export const toolCall = (bytes: number): string =>
  JSON.stringify({ tool_interactions: [{ text: noiseText(bytes) }] })

/** Messages with a tool call each, one after the other. @returns their ids */
export async function insertToolCalls(
  environment: TestEnvironment,
  conversationId: string,
  count: number,
  bytes: number,
): Promise<string[]> {
  const ids: string[] = []
  for (let n = 0; n < count; n++) ids.push(await insertMessage(environment, conversationId, toolCall(bytes)))
  return ids
}

export const isInline = async (environment: TestEnvironment, id: string): Promise<boolean> =>
  !/tool_interactions_ref|artifact_metadata_ref/.test((await rawMetadata(environment, id)) ?? '')
