// docs/first-hour.md, from its first command to its last, on a database that has nothing of pg-lighter.
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { blocksOf, readDoc } from '../support/doc-blocks.ts'
import { hydratedMany, useEnvironment } from '../support/environment.ts'
import { offloadedRows, writeMessages } from '../support/messages.ts'
import { type Finished, runCli, startCli } from '../support/process.ts'
import { originalTables, uniqueRole, value } from '../support/sql.ts'

const environment = await useEnvironment({ empty: true })
const worker = uniqueRole('lighter_worker')
const table = 'public.conversation_messages'
let folder: string
/** The tenant that is tried first, and a heavy row of it. */
const first = { tenant: '', id: '' }
const texts = new Map<string, string | null>()

beforeAll(async () => {
  folder = await mkdtemp(path.join(os.tmpdir(), 'pg-lighter-first-hour-'))
  await environment.admin.query(originalTables({ tenantColumn: false }))
  await environment.admin.query(
    'grant select, insert, update, delete on conversations, conversation_messages to public; alter table conversations disable row level security; alter table conversation_messages disable row level security',
  )
  const messages = await writeMessages(environment, { messages: 4000, tenants: 3, seed: 5 })
  const { rows } = await environment.admin.query<{ id: string; text: string | null }>(
    `select id, metadata::text as text from ${table}`,
  )
  for (const { id, text } of rows) texts.set(id, text)
  const heavy = messages.find(({ id }) => texts.get(id)?.includes('"tool_interactions"') === true)
  Object.assign(first, { tenant: heavy?.tenantId, id: heavy?.id })
  const url = new URL(environment.urls.daemon)
  url.username = worker
  url.password = 'secret'
  const settings = { ...environment.env, DATABASE_URL: url.href, LOG_LEVEL: 'info' }
  await writeFile(
    path.join(folder, '.env'),
    Object.entries(settings)
      .map(([name, setting]) => `${name}="${setting}"`)
      .join('\n'),
  )
})
afterAll(() => rm(folder, { recursive: true, force: true }))

const offloadedOf = (tenant: string | null) => offloadedRows(environment, table, tenant)

/** What must hold after a command, by what the command is; the others only have to succeed. */
const claims: [command: RegExp, holds: (finished: Finished) => Promise<void> | void][] = [
  [
    /^estimate/,
    async ({ stdout }) => {
      expect(stdout).toMatch(/^Offloading public\.conversation_messages\.metadata /)
      expect(stdout).toContain('nothing stands in the way of: lighter attach public.conversation_messages')
      expect(await value(environment.admin, `select to_regnamespace('lighter')::text`)).toBeNull()
    },
  ],
  [/^attach .*--dry-run/, ({ stdout }) => expect(stdout).toContain('can be attached; nothing was changed')],
  [/^backfill .*--tenant .*--dry-run/, ({ stdout }) => expect(stdout).toContain(first.tenant)],
  [
    /^flush .*--tenant/,
    async ({ stdout }) => {
      expect(stdout).toMatch(/rows left the queue/)
      expect(await offloadedOf(first.tenant)).toBeGreaterThan(50)
      expect(await offloadedOf(null)).toBe(await offloadedOf(first.tenant))
    },
  ],
  [/^status public\.conversation_messages/, ({ stdout }) => expect(stdout).toMatch(/left|offloaded/i)],
  [/^hydrate/, ({ stdout }) => expect(stdout.trim()).toBe(texts.get(first.id))],
  [
    /^flush --table public\.conversation_messages$/,
    async () => {
      expect(await offloadedOf(null)).toBeGreaterThan((await offloadedOf(first.tenant)) + 50)
    },
  ],
  [/^reclaim/, ({ stdout }) => expect(stdout).toMatch(/a rewrite gives back about \d/)],
]

test('every command and statement of it, one after the other', { timeout: 180_000 }, async () => {
  const steps = blocksOf(readDoc('first-hour.md')).flatMap(({ info, text }) =>
    info === 'sql'
      ? [{ info, text }]
      : info === 'sh'
        ? text
            .trim()
            .split('\n')
            .map(line => ({ info, text: line }))
        : [],
  )
  expect(steps.length).toBeGreaterThan(18)
  const unused = new Set(claims)
  for (const { info, text } of steps) {
    if (info === 'sql') {
      await environment.admin.query(text.replaceAll('lighter_worker', worker).replace('…', 'secret'))
      continue
    }
    const filled = text.replaceAll('<tenant>', first.tenant).replaceAll('<id>', first.id)
    const [program, ...args] = filled.split(' ')
    expect(program, text).toBe('lighter')
    if (args.at(-1) === 'start') {
      const daemon = startCli(args, { cwd: folder })
      await daemon.says('the HTTP API listens')
      continue
    }
    const finished = await runCli(args, { cwd: folder })
    expect(finished.code, `${text}\n${finished.stdout}\n${finished.stderr}`).toBe(0)
    const command = args.slice(2).join(' ')
    for (const claim of claims) {
      if (!claim[0].test(command)) continue
      unused.delete(claim)
      await claim[1](finished)
    }
  }
  expect([...unused].map(([command]) => command)).toEqual([])
  const ids = [...texts.keys()]
  expect(await hydratedMany(environment, ids)).toEqual([...texts.values()])
})
