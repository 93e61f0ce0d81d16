// Messages for `lighter demo`, examples and benches: made up, shaped as the measured conversations
// (DESIGN.md §1), or read from a JSON-lines file.
import { createReadStream } from 'node:fs'
import { open } from 'node:fs/promises'
import { pipeline } from 'node:stream'
import { createGunzip, createZstdDecompress } from 'node:zlib'
import { splitObject, uuidOf } from '../artifacts/raw-json.ts'
import { LighterError, messageOf } from '../errors.ts'
import { between, chance, pickIndex, type Random, runningTotals, seededRandom, uuid } from './random.ts'
import {
  assistantText,
  type Customer,
  callTool,
  createWorld,
  customerOf,
  documentAnalysis,
  hardObject,
  hardText,
  type ToolCall,
  userText,
  type World,
} from './text.ts'

export interface DemoMessage {
  tenantId: string
  conversationId: string
  seq: number
  role: string
  content: string
  /** Exact JSON text: never parsed again. */
  metadata: string
}

export interface GenerateOptions {
  seed: number
  /** `Infinity` for an endless stream. */
  messages: number
  tenants: number
  /** If set, one message in the middle carries a document analysis of about this size. */
  largeBytes?: number
}

interface Conversation {
  id: string
  tenantId: string
  customer: Customer
  seq: number
  exchangesLeft: number
  /** Whose turn it is. */
  next: 'user' | 'assistant'
  /** JSON text of what happened so far, for the trace at the end. */
  steps: string[]
  stepsLength: number
}

// Shares and sizes below are those of the measured data; a test holds the outcome to it.
const maxOpenConversations = 64
const customersPerTenant = 24
const maxTraceLength = 34_000
const callCountTotals = runningTotals([617, 182, 89, 29, 26, 17, 7, 14, 7, 2, 7, 2, 1])
const maxInteractionsLength = 12_000

/**
 * A seeded stream of messages: the same options give the same messages. Tenants differ in size (the n-th has
 * 1/n of the first), their conversations interleave, each ends with a message that carries its trace.
 * Memory: the open conversations only, plus the one large payload.
 */
export function* generateMessages(options: GenerateOptions): Generator<DemoMessage> {
  const { seed, messages, tenants, largeBytes } = options
  const random = seededRandom(seed, 'messages')
  const world = createWorld(seed)
  const tenantTotals = runningTotals(Array.from({ length: tenants }, (_, index) => 1 / (index + 1)))
  const start = () => {
    const tenant = pickIndex(random, tenantTotals)
    return startConversation(world, tenant, random)
  }
  // Few enough that even a short stream sees conversations through to their end.
  const openCount = Math.max(1, Math.min(maxOpenConversations, Math.floor(messages / 150)))
  const openConversations = Array.from({ length: openCount }, start)
  const largeAt = largeBytes === undefined ? -1 : Number.isFinite(messages) ? Math.floor(messages / 2) : 1_000

  for (let count = 0; count < messages; count++) {
    const index = Math.floor(random() * openCount)
    const conversation = openConversations[index] ?? start()
    if (count === largeAt && largeBytes !== undefined) {
      const call = documentAnalysis(world, conversation.customer, random, largeBytes)
      yield reply(conversation, 'I have read the document.', [call])
    } else if (conversation.next === 'user') {
      yield ask(conversation, random)
    } else if (conversation.exchangesLeft > 0) {
      yield answer(world, conversation, random)
    } else {
      yield close(conversation, random)
      openConversations[index] = start()
    }
  }
}

function startConversation(world: World, tenant: number, random: Random): Conversation {
  const tenantId = uuid(seededRandom(world.seed, 'tenant', tenant))
  // Some customers write far more often than others.
  const customer = customerOf(world, tenant, Math.floor(random() ** 2 * customersPerTenant))
  const exchangesLeft = 3 + Math.round(-2.2 * Math.log((1 - random()) * (1 - random())))
  return {
    id: uuid(random),
    tenantId,
    customer,
    seq: 0,
    exchangesLeft,
    next: 'user',
    steps: [],
    stepsLength: 0,
  }
}

function ask(conversation: Conversation, random: Random): DemoMessage {
  const hard = chance(random, 0.006)
  const text = userText(conversation.customer, random, conversation.seq === 0)
  const content = hard ? `${text} ${hardText(random)}` : text
  addSteps(conversation, [JSON.stringify({ role: 'user', content })])
  conversation.next = 'assistant'
  return message(conversation, 'user', content, hard ? `{"client":${hardObject(random)}}` : '{}')
}

function answer(world: World, conversation: Conversation, random: Random): DemoMessage {
  const calls: ToolCall[] = []
  // The first answer mostly asks who is writing.
  if (chance(random, conversation.seq === 1 ? 0.2 : 0.45)) {
    let length = 0
    for (
      let left = pickIndex(random, callCountTotals) + 1;
      left > 0 && length < maxInteractionsLength;
      left--
    ) {
      const call = callTool(world, conversation.customer, random)
      calls.push(call)
      length += call.args.length + call.result.length
    }
    if (chance(random, 0.035))
      calls.push({ tool: 'crm_lookup', args: '{"exact":true}', result: hardObject(random) })
  }
  conversation.next = 'user'
  conversation.exchangesLeft--
  if (conversation.exchangesLeft === 0) conversation.next = 'assistant'
  return reply(conversation, assistantText(conversation.customer, random), calls)
}

function reply(conversation: Conversation, content: string, calls: ToolCall[]): DemoMessage {
  for (const call of calls) addSteps(conversation, traceSteps(conversation, call))
  addSteps(conversation, [JSON.stringify({ content, role: 'assistant' })])
  const interactions = calls.map(
    ({ tool, args, result }) => `{"tool":"${tool}","args":${args},"result":${result}}`,
  )
  const own = calls.length === 0 ? '' : `,"tool_interactions":[${interactions.join(',')}]`
  const head = `{"tenant_id":"${conversation.tenantId}","model":"gpt-4o","iterations":${calls.length === 0 ? 1 : 2}`
  return message(conversation, 'assistant', content, `${head}${own}}`)
}

/** The last message of a conversation: nothing is left to say, its metadata tells how it went. */
function close(conversation: Conversation, random: Random): DemoMessage {
  const { tenantId, seq, customer, steps } = conversation
  const reward = chance(random, 0.6) ? '1.0' : '0.0'
  const trace = `{"task_id":${between(random, 0, 49)},"trial":${between(random, 0, 3)},"reward":${reward},"steps":[${steps.join(',')}]}`
  const head = `{"tenant_id":"${tenantId}","model":"gpt-4o","iterations":${seq},"reason":"closed","usage":{"messages":${seq}}`
  return message(
    conversation,
    'assistant',
    '(conversation closed)',
    `${head},"account_id":"${customer.accountId}","trace":${trace}}`,
  )
}

function message(conversation: Conversation, role: string, content: string, metadata: string): DemoMessage {
  const { tenantId, id: conversationId } = conversation
  return { tenantId, conversationId, seq: conversation.seq++, role, content, metadata }
}

/** A call and its result as a chat API records them: JSON inside JSON strings. */
function traceSteps(conversation: Conversation, { tool, args, result }: ToolCall): string[] {
  // Escaping a document of many megabytes, only to find that it is over the limit, would double its memory.
  if (result.length > maxTraceLength) return []
  const id = `call_${conversation.id.slice(0, 8)}${conversation.steps.length}`
  const call = {
    content: null,
    role: 'assistant',
    tool_calls: [{ function: { arguments: args, name: tool }, id, type: 'function' }],
  }
  return [
    JSON.stringify(call),
    JSON.stringify({ role: 'tool', tool_call_id: id, name: tool, content: result }),
  ]
}

/** What would make the trace longer than any measured one is left out of it. */
function addSteps(conversation: Conversation, steps: string[]): void {
  const length = steps.reduce((sum, step) => sum + step.length + 1, 0)
  if (conversation.stepsLength + length > maxTraceLength) return
  conversation.steps.push(...steps)
  conversation.stepsLength += length
}

/**
 * The messages of a JSON-lines file, one at a time: memory holds one line. Plain, gzip or zstd, told apart by
 * the file's first bytes. Empty lines are skipped.
 *
 * A line: `{"tenant_id":…,"conversation_id":…,"seq":…,"role":…,"content":…,"metadata":{…}}`, other fields
 * are ignored.
 * @throws {LighterError} `bad_message_line`: names file, line and field. `bad_message_file`: can't be decompressed
 */
export async function* readMessages(path: string): AsyncGenerator<DemoMessage> {
  let line = 0
  for await (const bytes of readLines(path)) {
    line++
    if (!isBlank(bytes)) yield parseLine(bytes, path, line)
  }
}

const isBlank = (bytes: Buffer): boolean =>
  bytes.every(byte => byte === 0x20 || byte === 0x09 || byte === 0x0d)

function parseLine(bytes: Buffer, path: string, line: number): DemoMessage {
  let where = ''
  try {
    const fields = splitObject(new TextDecoder('utf-8', { fatal: true }).decode(bytes))
    const rawOf = (name: string): string => {
      where = `field "${name}": `
      const raw = fields.get(name)
      if (raw === undefined) throw new Error('it is missing')
      return raw
    }
    return {
      tenantId: parseUuid(rawOf('tenant_id')),
      conversationId: parseUuid(rawOf('conversation_id')),
      seq: parseWholeNumber(rawOf('seq')),
      role: parseString(rawOf('role')),
      content: parseString(rawOf('content')),
      metadata: objectText(rawOf('metadata')),
    }
  } catch (error) {
    throw new LighterError('bad_message_line', `${path}, line ${line}: ${where}${messageOf(error)}`, {
      cause: error,
    })
  }
}

function parseString(raw: string): string {
  const value: unknown = raw.startsWith('"') ? JSON.parse(raw) : undefined
  if (typeof value !== 'string') throw new Error('a string was expected')
  return value
}

function parseUuid(raw: string): string {
  const uuid = uuidOf(raw)
  if (uuid === null) throw new Error('a uuid was expected')
  return uuid
}

function parseWholeNumber(raw: string): number {
  if (!/^\d{1,15}$/.test(raw)) throw new Error('a whole number was expected')
  return Number(raw)
}

function objectText(raw: string): string {
  if (!raw.startsWith('{')) throw new Error('an object was expected')
  return raw
}

/** Split at line feeds only: readline also splits at U+2028, which JSON allows inside strings. */
async function* readLines(path: string): AsyncGenerator<Buffer> {
  let parts: Buffer[] = []
  for await (const chunk of readDecompressed(path)) {
    let from = 0
    for (let end = chunk.indexOf(10); end !== -1; end = chunk.indexOf(10, from)) {
      parts.push(chunk.subarray(from, end))
      yield parts.length === 1 ? chunk.subarray(from, end) : Buffer.concat(parts)
      parts = []
      from = end + 1
    }
    if (from < chunk.length) parts.push(chunk.subarray(from))
  }
  if (parts.length > 0) yield Buffer.concat(parts)
}

async function* readDecompressed(path: string): AsyncGenerator<Buffer> {
  const { magic, size } = await inspect(path)
  const decoder = magic.startsWith('1f8b') ? createGunzip : magic === '28b52ffd' ? createZstdDecompress : null
  if (decoder === null) {
    yield* createReadStream(path)
    return
  }
  // A compressed file may be many frames one after another (a pack is). Node's zstd stream ends at the end of a
  // frame that is followed by another in the same chunk, without a word (24.21), so we go on from there.
  for (let start = 0; start < size; ) {
    const decompress = decoder()
    pipeline(createReadStream(path, { start }), decompress, () => {})
    try {
      for await (const chunk of decompress) yield chunk as Buffer
    } catch (error) {
      throw new LighterError('bad_message_file', `${path}: ${messageOf(error)}`, { cause: error })
    }
    if (decompress.bytesWritten === 0)
      throw new LighterError('bad_message_file', `${path}: nothing to decompress at byte ${start}`)
    start += decompress.bytesWritten
  }
}

async function inspect(path: string): Promise<{ magic: string; size: number }> {
  const file = await open(path).catch(error => {
    throw new LighterError('bad_message_file', `${path} can not be opened: ${messageOf(error)}`, {
      cause: error,
    })
  })
  try {
    const { buffer, bytesRead } = await file.read(Buffer.alloc(4), 0, 4, 0)
    return { magic: buffer.toString('hex', 0, bytesRead), size: (await file.stat()).size }
  } finally {
    await file.close()
  }
}
