// Messages as an application writes them, over some time.
import { randomUUID } from 'node:crypto'
import { type DemoMessage, generateMessages } from '../../src/demo/messages.ts'
import { type Replay, replayMessages } from '../../src/demo/replay.ts'
import type { TestEnvironment } from '../support/environment.ts'

/** As `lighter demo` writes: at an even pace, some rows changed or deleted moments later, a few of them heavy. */
export async function writeAtPace(
  environment: TestEnvironment,
  options: { messages: number; tenants: number; seed: number; perSecond: number; heavy?: number },
  signal: AbortSignal = new AbortController().signal,
): Promise<string[]> {
  const replay: Replay = { written: 0, updated: 0, deleted: 0, expected: new Map() }
  const pace = { seed: options.seed, writers: 4, signal }
  if (options.heavy !== undefined) {
    const heavy = heavyMessages(options.seed, options.tenants, options.heavy)
    await replayMessages(environment.app, heavy, { ...pace, perSecond: 10 }, replay)
  }
  await replayMessages(
    environment.app,
    generateMessages(options),
    { ...pace, perSecond: options.perSecond },
    replay,
  )
  return [...replay.expected.keys()]
}

/** Document analyses of 300 KB, of the same tenants in conversations of their own. */
function* heavyMessages(seed: number, tenants: number, count: number): Generator<DemoMessage> {
  const owners = [...generateMessages({ seed, messages: count * 5, tenants })].map(
    message => message.tenantId,
  )
  for (let i = 0; i < count; i++) {
    const [message] = generateMessages({ seed, messages: 1, tenants, largeBytes: 200_000 + i * 3000 })
    if (message === undefined) throw new Error('no message was made')
    yield { ...message, tenantId: owners[i * 5] ?? message.tenantId, conversationId: randomUUID() }
  }
}
