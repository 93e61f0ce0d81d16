// Programs that keep artifacts over HTTP, of daemons that die under their requests. What they were told must stay true.
import { createHash } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { between, chance, pick, type Random, uuid } from '../src/demo/random.ts'
import { messageOf } from '../src/errors.ts'
import { type LighterClient, LighterError, LighterHttpError } from '../src/index.ts'
import type { Findings } from './findings.ts'
import { graceMs, longestReadMs, shortLivedKind } from './settings.ts'

export interface Kept {
  tenantId: string
  /** Its own alone, and its idempotency key: whatever was stored for it is found by that. */
  entityId: string
  kind: string
  sha256: string
  bytes: number
  /** Null: no answer has come yet. It is there or not, and not twice. */
  id: string | null
  /** When it was first sent, on the clock of `performance.now`. */
  sentAt: number
  /** going: it was to be deleted, and nobody has confirmed it. */
  state: 'there' | 'going' | 'gone'
}

export interface ProgramOptions {
  tenantId: string
  /** Each of one daemon, which may be down. */
  clientsOf: (tenantId: string) => LighterClient[]
  random: Random
  /** Text that pieces are cut out of. */
  noise: string
  findings: Findings
  onWrite: (operation: string) => void
  onRead: () => void
}

export interface Program {
  /** All that it has ever stored. */
  readonly kept: Kept[]
  run(signal: AbortSignal): Promise<void>
}

const KiB = 1024
/** Not deleted yet, at most. */
const mostThere = 150
const mostLarge = 4
/** Requests at once: many wait for a daemon that is stopped, or for its store. */
const hands = 6
/** A tenant who has nothing. */
const stranger = '00000000-0000-4000-8000-000000000000'

export const sha256Of = (bytes: Uint8Array | string) => createHash('sha256').update(bytes).digest('hex')

export function createProgram(options: ProgramOptions): Program {
  const { tenantId, clientsOf, random, noise, findings } = options
  const kept: Kept[] = []
  const there = () => kept.filter(each => each.state === 'there' && each.id !== null)
  const anyone = (tenant = tenantId) => pick(random, clientsOf(tenant))

  const piece = (bytes: number) => {
    const from = between(random, 0, noise.length - bytes)
    return noise.slice(from, from + bytes)
  }

  const put = async (signal: AbortSignal) => {
    const large = chance(random, 0.03) && there().filter(each => each.bytes > KiB * KiB).length < mostLarge
    const shape = large ? 'stream' : pick(random, ['json', 'json', 'bytes', 'stream'] as const)
    const text = large
      ? piece(between(random, 6 * KiB * KiB, 8 * KiB * KiB))
      : shape === 'json'
        ? `{"trace": [${random()}, 12345678901234567890.50], "text": "${piece(between(random, 10, 30_000))}"}`
        : piece(between(random, 0, 200 * KiB))
    const entityId = uuid(random)
    const one: Kept = {
      tenantId,
      entityId,
      kind: pick(random, ['agent_trace', 'chat_transcript', 'attachment', shortLivedKind]),
      sha256: sha256Of(text),
      bytes: text.length,
      id: null,
      sentAt: performance.now(),
      state: 'there',
    }
    kept.push(one)
    const facts = { kind: one.kind, entityType: 'torture', entityId, idempotencyKey: entityId }
    const send = () =>
      anyone().put(
        shape === 'json'
          ? { ...facts, json: text }
          : { ...facts, body: shape === 'bytes' ? Buffer.from(text) : streamOf(text) },
      )
    // Again until it is answered, of whichever daemon: under its key it is stored once.
    for (let attempt = 0; !signal.aborted; attempt++) {
      try {
        const stored = await send()
        one.id = stored.id
        if (stored.sha256 !== one.sha256)
          findings.add('mismatched', stored.id, `stored with sha256 ${stored.sha256}, not ${one.sha256}`)
        options.onWrite(large ? 'put large' : 'put')
        // Some answers never arrive, though the artifact is stored. Then it is sent again.
        const again = chance(random, 0.1)
        if (again) {
          const answered = await send().catch(undefinedIfTroubleOrGone)
          if (answered !== undefined && answered.id !== stored.id)
            findings.add('leaked_objects', entityId, `sent again, and stored as ${answered.id} too`)
        }
        if (again || attempt > 0) await findTwins(one)
        return
      } catch (error) {
        // An answer that took longer than it lives.
        if (isGone(error) && isShortLived(one)) {
          one.state = 'gone'
          return
        }
        if (!isTrouble(error)) {
          findings.add('refused_writes', entityId, `put: ${said(error)}`)
          return
        }
        await sleep(between(random, 50, Math.min(1000, 100 * 2 ** attempt)))
      }
    }
  }

  /** Whoever had to send it several times has stored it once. */
  const findTwins = async ({ entityId }: Kept) => {
    try {
      const { artifacts } = await anyone().list({ entityType: 'torture', entityId })
      if (artifacts.length > 1)
        findings.add('leaked_objects', entityId, `put once, and stored ${artifacts.length} times`)
    } catch (error) {
      if (!isTrouble(error)) throw error
    }
  }

  const remove = async (one: Kept, signal: AbortSignal) => {
    if (one.id === null) return
    one.state = 'going'
    for (let attempt = 0; !signal.aborted; attempt++) {
      try {
        await anyone().delete(one.id)
        one.state = 'gone'
        options.onWrite('delete artifact')
        return
      } catch (error) {
        // Of an earlier attempt, or of its age.
        if (isGone(error) && (attempt > 0 || isShortLived(one))) {
          one.state = 'gone'
          return
        }
        if (!isTrouble(error)) {
          findings.add('lost', one.id, `delete: ${said(error)}`)
          return
        }
        await sleep(between(random, 50, 500))
      }
    }
  }

  const read = async (one: Kept) => {
    if (one.id === null) return
    const { state } = one
    const began = performance.now()
    try {
      const sha256 = await readOnce(anyone(), one, random)
      if (state === 'gone') findings.add('mismatched', one.id, 'it was deleted, and can be read')
      if (sha256 !== one.sha256) findings.add('mismatched', one.id, `read with sha256 ${sha256}`)
      options.onRead()
    } catch (error) {
      if (isTrouble(error) || performance.now() - began > longestReadMs) return
      if (isGone(error) && (one.state !== 'there' || isShortLived(one))) return
      findings.add('lost', one.id, said(error))
    }
  }

  const readAsStranger = async (one: Kept) => {
    if (one.id === null) return
    try {
      const client = anyone(stranger)
      const { artifacts } = await client.list({ entityType: 'torture', entityId: one.entityId })
      if (artifacts.length > 0) findings.add('cross_tenant', one.id, 'another tenant could list it')
      await client.get(one.id)
      findings.add('cross_tenant', one.id, 'another tenant could read it')
    } catch (error) {
      if (!isTrouble(error) && codeOf(error) !== 'artifact_not_found')
        findings.add('cross_tenant', one.id, `another tenant was told ${said(error)}`)
    }
  }

  const step = async (signal: AbortSignal) => {
    const known = there()
    const one = known.length === 0 ? undefined : pick(random, chance(random, 0.5) ? known.slice(-5) : known)
    if (one === undefined || (known.length < mostThere && chance(random, 0.4))) await put(signal)
    else if (known.length >= mostThere || chance(random, 0.25)) await remove(one, signal)
    else if (chance(random, 0.1)) await readAsStranger(one)
    else await read(chance(random, 0.1) ? pick(random, kept) : one)
  }
  const work = async (signal: AbortSignal) => {
    while (!signal.aborted) {
      await step(signal)
      await sleep(random() * 200)
    }
  }

  return {
    kept,
    run: async signal => {
      await Promise.all(Array.from({ length: hands }, () => work(signal)))
    },
  }
}

/** Of the kind that expires, and old enough for that. */
const isShortLived = ({ kind, sentAt }: Kept) =>
  kind === shortLivedKind && performance.now() - sentAt > graceMs

export const codeOf = (error: unknown) => (error instanceof LighterError ? error.code : 'unknown')

const said = (error: unknown) =>
  `${codeOf(error)} ${messageOf(error)}${error instanceof LighterHttpError && error.requestId !== undefined ? `, request ${error.requestId}` : ''}`

const isGone = (error: unknown) =>
  ['artifact_not_found', 'artifact_gone', 'artifact_deleted', 'artifact_expired'].includes(codeOf(error))

/** Of the connection, the store or the database: nothing is said about the artifact. */
const isTrouble = (error: unknown) => error instanceof LighterError && error.retryable

function undefinedIfTroubleOrGone(error: unknown): undefined {
  if (!isTrouble(error) && !isGone(error)) throw error
}

async function* streamOf(text: string): AsyncGenerator<Uint8Array> {
  for (let from = 0; from < text.length; from += 64 * KiB)
    yield Buffer.from(text.slice(from, from + 64 * KiB))
}

/** Whole, as a stream, or in two ranges. */
async function readOnce(client: LighterClient, { id, bytes }: Kept, random: Random): Promise<string> {
  if (id === null) throw new TypeError('it has no id')
  if (chance(random, 0.5)) return sha256Of((await client.get(id)).payload.bytes)
  const hash = createHash('sha256')
  const middle = bytes < 2 ? 0 : between(random, 1, bytes - 1)
  const ranges =
    middle > 0 && chance(random, 0.5) ? [{ start: 0, end: middle }, { start: middle }] : [undefined]
  for (const range of ranges)
    for await (const chunk of await client.stream(id, range === undefined ? {} : { range }))
      hash.update(chunk)
  return hash.digest('hex')
}
