// Which kinds are taken from programs. A kind is part of every key and of every report, so it must say what a thing is.
import { ArtifactError } from '../errors.ts'

const documentedKinds = [
  'chat_transcript',
  'agent_trace',
  'memory_snapshot',
  'tool_call_payload',
  'attachment',
  'workflow_state',
  'assistant_message_tool_interactions',
  'assistant_message_metadata',
]

const genericNames = new Set([
  'artifact',
  'blob',
  'content',
  'data',
  'file',
  'item',
  'json',
  'misc',
  'object',
  'other',
  'payload',
  'stuff',
  'test',
  'thing',
  'unknown',
])

/** @param added ARTIFACT_KINDS. @throws {ArtifactError} `kind_not_allowed` with the reason */
export function requireKind(kind: string, added: readonly string[]): void {
  const refuse = (reason: string) => {
    throw new ArtifactError('kind_not_allowed', reason)
  }
  if (!/^[a-z][a-z0-9]*(_[a-z0-9]+)*$/.test(kind)) refuse('kind must be snake_case, such as agent_trace')
  if (added.includes(kind) || documentedKinds.includes(kind)) return
  if (genericNames.has(kind))
    refuse(`"${kind}" says nothing about what it is: choose a kind such as agent_trace`)
  refuse(
    `"${kind}" is not one of ${[...documentedKinds, ...added].join(', ')}; more can be allowed by ARTIFACT_KINDS`,
  )
}
