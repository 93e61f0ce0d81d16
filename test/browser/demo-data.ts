// A database with something to see: messages that were really offloaded by a daemon, one that can't be, and a past.
import { randomUUID } from 'node:crypto'
import { type DemoMessage, generateMessages } from '../../src/demo/messages.ts'
import { type Replay, replayMessages } from '../../src/demo/replay.ts'
import { type TestEnvironment, until } from '../support/environment.ts'

/** Rows of a source whose tenant can't be found are given up: their conversation is nobody's. */
export async function writeFailingRows(environment: TestEnvironment, rows: number): Promise<string[]> {
  const ids = Array.from({ length: rows }, () => randomUUID())
  const conversation = randomUUID()
  await environment.admin.query('alter table conversations alter column tenant_id drop not null')
  await environment.admin.query('insert into conversations (id, tenant_id) values ($1, null)', [conversation])
  for (const id of ids) {
    await environment.app.query(
      `insert into conversation_messages (id, conversation_id, role, content, metadata)
       values ($1, $2, 'assistant', '', '{"tool_interactions": [{"tool": "search"}]}')`,
      [id, conversation],
    )
  }
  await until(async () => {
    const { rows: found } = await environment.admin.query(
      'select from lighter.failed_jobs where row_id = any ($1)',
      [ids],
    )
    return found.length === rows
  }, 'the rows have been given up')
  return ids
}

/** The tenant that was missing. */
export async function mendFailingRows(environment: TestEnvironment): Promise<void> {
  await environment.admin.query(
    'update conversations set tenant_id = gen_random_uuid() where tenant_id is null',
  )
}

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
