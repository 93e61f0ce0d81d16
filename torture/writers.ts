// Writers: what an application does to its messages, without pause and without a thought for the daemons.
import { setTimeout as sleep } from 'node:timers/promises'
import type pg from 'pg'
import { between, chance, pick, pickIndex, type Random, runningTotals, uuid } from '../src/demo/random.ts'
import { isDatabaseOutage, isTransactionConflict, messageOf, sqlState } from '../src/errors.ts'
import type { Backpressure } from './backpressure.ts'
import type { Findings } from './findings.ts'
import type { Payloads } from './payloads.ts'

type Db = Pick<pg.ClientBase, 'query'>

export interface Writer {
  readonly tenantId: string
  /** Its rows, as far as it knows: a write whose answer was lost may or may not be. */
  readonly rows: string[]
  conversations(): string[]
  run(signal: AbortSignal): Promise<void>
  /** Nothing of its is under way when it returns, nor until `resume`. */
  pause(): Promise<void>
  resume(): void
  /** Deletes a whole conversation, however long the database is away. */
  deleteConversation(id: string): Promise<void>
}

export interface WriterOptions {
  app: pg.Pool
  tenantId: string
  random: Random
  payloads: Payloads
  findings: Findings
  onWrite: (operation: string, id: string | null) => void
  /** Rows that it keeps at most. */
  maxRows: number
  /** Large rows at most, and at once. */
  maxLarge: number
  backpressure: Backpressure
}

type Target = { id: string; raw: string | null }

const hotRows = 4

export function createWriter(options: WriterOptions): Writer {
  const { app, tenantId, random, payloads, findings } = options
  const rows: string[] = []
  let conversations: string[] = []
  const rowsOf = new Map<string, string[]>()
  const large: string[] = []
  let conversation = newConversation()
  /** By the operation that is under way. */
  let written: string | null = null
  let gate: PromiseWithResolvers<void> | null = null
  let idle: PromiseWithResolvers<void> | null = null

  function newConversation(): string {
    const id = uuid(random)
    conversations.push(id)
    rowsOf.set(id, [])
    return id
  }

  const remember = (id: string) => {
    written = id
    rows.push(id)
    rowsOf.get(conversation)?.push(id)
  }
  const forget = (id: string) => {
    for (const list of [rows, large, ...rowsOf.values()]) {
      const at = list.indexOf(id)
      if (at >= 0) list.splice(at, 1)
    }
  }
  // Those written last are hot: their offload is under way.
  const target = () => {
    written = chance(random, 0.6) ? pick(random, rows.slice(-hotRows)) : pick(random, rows)
    return written
  }

  const call = async (db: Db, sql: string, values: unknown[]): Promise<boolean> => {
    const { rows: answer } = await db.query<{ done: boolean }>(`select torture.${sql} as done`, values)
    return answer[0]?.done === true
  }
  const insert = async (db: Db, doc: string | null) => {
    if (chance(random, 0.08)) conversation = newConversation()
    const id = uuid(random)
    // Before it is known whether it is there: what is not there is found out later, and forgotten.
    remember(id)
    await call(db, 'insert_message($1, $2, $3, $4)', [id, conversation, tenantId, doc])
    return id
  }
  /** Nothing done: the row may turn out not to be there. */
  const on = async (db: Db, id: string, done: Promise<boolean>) => {
    if (!(await done)) await settle(db, id)
  }
  const settle = async (db: Db, id: string) => {
    const { rowCount } = await db.query('select from torture.expected where row_id = $1', [id])
    if (rowCount === 0) forget(id)
  }
  const patch = (db: Db, id: string, doc: string, operation: string) =>
    on(db, id, call(db, 'patch_message($1, $2, $3)', [id, doc, operation]))

  const operations: [weight: number, name: string, run: (db: Db) => Promise<unknown>][] = [
    [30, 'insert', db => insert(db, payloads.whole())],
    [14, 'replace', db => onTarget(db, id => call(db, 'replace_message($1, $2)', [id, payloads.whole()]))],
    [14, 'patch', db => patch(db, target(), payloads.patch(), 'patch')],
    [
      10,
      'interactions',
      db => patch(db, target(), `{"tool_interactions": ${payloads.interactions()}}`, 'interactions'),
    ],
    [
      5,
      'clear interactions',
      db => {
        const cleared = pick(random, ['null', '{}', '[]', '"redacted"'])
        return patch(db, target(), `{"tool_interactions": ${cleared}}`, `interactions to ${cleared}`)
      },
    ],
    [
      4,
      'clear',
      db => onTarget(db, id => call(db, 'replace_message($1, $2)', [id, pick(random, [null, '{}'])])),
    ],
    [3, 'remove key', db => onTarget(db, id => call(db, 'remove_key($1, $2)', [id, random() * 0.999]))],
    [
      3,
      'copy',
      db => {
        const copy = uuid(random)
        const source = target()
        remember(copy)
        return call(db, 'copy_message($1, $2)', [source, copy])
      },
    ],
    [3, 'write back', db => writeBack(db, target())],
    [
      8,
      'delete',
      async db => {
        const id = target()
        await call(db, 'delete_message($1)', [id])
        await settle(db, id)
      },
    ],
    [
      2,
      'reborn',
      async db => {
        const id = target()
        if (!(await call(db, 'delete_message($1)', [id]))) return
        if (chance(random, 0.5)) await sleep(between(random, 0, 100))
        await call(db, 'insert_message($1, $2, $3, $4)', [id, conversationOf(id), tenantId, payloads.whole()])
      },
    ],
    [1, 'delete conversation', () => deleteConversation(pick(random, conversations))],
  ]
  const totals = runningTotals(operations.map(([weight]) => weight))
  const conversationOf = (id: string) => [...rowsOf].find(([, ids]) => ids.includes(id))?.[0] ?? conversation
  const onTarget = (db: Db, run: (id: string) => Promise<boolean>) => {
    const id = target()
    return on(db, id, run(id))
  }
  const writeBack = async (db: Db, id: string) => {
    const { rows: found } = await db.query<Target>(
      'select id, metadata::text as raw from conversation_messages where id = $1',
      [id],
    )
    const [row] = found
    if (row === undefined) return
    await on(db, id, call(db, 'write_back($1, $2)', [id, row.raw]))
  }

  const deleteConversation = async (id: string) => {
    for (;;) {
      try {
        await call(app, 'delete_conversation($1)', [id])
        break
      } catch (error) {
        if (!isDatabaseOutage(error) && !isTransactionConflict(error)) throw error
        await sleep(100)
      }
    }
    for (const row of [...(rowsOf.get(id) ?? [])]) forget(row)
    rowsOf.delete(id)
    conversations = conversations.filter(each => each !== id)
    if (conversation === id) conversation = newConversation()
  }

  /** Several operations, now and then with a pause in which the rows are locked; some are rolled back. */
  const transaction = async () => {
    const client = await app.connect()
    let broken: Error | undefined
    try {
      const isolation = chance(random, 0.3) ? 'repeatable read' : 'read committed'
      await client.query(`begin isolation level ${isolation}`)
      for (let left = between(random, 1, 3); left > 0; left--) {
        await one(client, index => operations[index]?.[1] !== 'delete conversation')
        if (chance(random, 0.4)) await sleep(between(random, 0, 300))
      }
      if (chance(random, 0.8)) await client.query('commit')
      else await client.query('rollback')
    } catch (error) {
      broken = error instanceof Error ? error : new Error(String(error))
      throw error
    } finally {
      client.release(broken)
    }
  }
  const one = async (db: Db, allowed: (index: number) => boolean = () => true) => {
    let index = rows.length === 0 ? 0 : pickIndex(random, totals)
    if (!allowed(index)) index = 0
    const [, name, run] = operations[index] ?? operations[0] ?? []
    if (name === undefined || run === undefined) return
    await run(db)
    options.onWrite(name, written)
  }
  const insertLarge = async () => {
    const id = await insert(app, payloads.large())
    large.push(id)
    options.onWrite('insert large', id)
  }

  const step = async () => {
    const oldLarge = large.length > options.maxLarge ? large[0] : undefined
    const tooMany = rows.length > options.maxRows ? pick(random, rows) : undefined
    const doomed = oldLarge ?? tooMany
    if (doomed !== undefined) {
      await call(app, 'delete_message($1)', [doomed])
      forget(doomed)
      options.onWrite('delete', null)
    } else if (options.maxLarge > 0 && chance(random, 0.02)) await insertLarge()
    else if (chance(random, 0.1)) await transaction()
    else await one(app)
  }

  return {
    tenantId,
    rows,
    conversations: () => [...conversations],
    deleteConversation,
    run: async signal => {
      while (!signal.aborted) {
        if (gate !== null) {
          idle?.resolve()
          await Promise.race([
            gate.promise,
            new Promise(resolve => signal.addEventListener('abort', resolve)),
          ])
          continue
        }
        try {
          await step()
        } catch (error) {
          if (isDatabaseOutage(error)) await sleep(between(random, 50, 200))
          else if (!isTransactionConflict(error)) {
            const lost = sqlState(error) === 'XL057'
            const message = messageOf(error)
            findings.add(
              lost ? 'lost' : 'refused_writes',
              lost ? (/[0-9a-f-]{36}/.exec(message)?.[0] ?? message) : message,
              message,
            )
          }
        }
        await sleep(random() * 70)
        await options.backpressure.wait(signal)
      }
      idle?.resolve()
    },
    pause: async () => {
      gate = Promise.withResolvers()
      idle = Promise.withResolvers()
      await idle.promise
    },
    resume: () => {
      gate?.resolve()
      gate = null
      idle = null
    },
  }
}
