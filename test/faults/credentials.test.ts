// Credentials that are rotated under a running daemon.
import { readFile, rename, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { beforeEach, describe, expect, onTestFinished, test } from 'vitest'
import { startR2 } from '../../src/embedded/r2.ts'
import { openStore } from '../../src/store/object-store.ts'
import {
  asJsonbText,
  drained,
  hydratedMany,
  insertMessage,
  newConversation,
  startDaemon,
  type TestEnvironment,
  until,
  useFreshEnvironment,
} from '../support/environment.ts'
import { createLogin } from '../support/own-login.ts'
import { temporaryDir } from '../support/own-server.ts'

const environment = useFreshEnvironment()
let conversationId: string
beforeEach(async () => {
  conversationId = (await newConversation(environment)).conversationId
})

type Line = Record<string, unknown>

async function start(env: Record<string, string>) {
  const lines: Line[] = []
  // No attempt to spare: whatever blames a row makes it a dead letter.
  const daemon = await startDaemon(environment, {
    env: { OFFLOAD_MAX_ATTEMPTS: '1', ...env },
    log: line => lines.push(line),
  })
  onTestFinished(() => daemon.stop(0).then(() => undefined))
  return { daemon, lines }
}

async function write(rows: number, round: number): Promise<Map<string, string>> {
  const written = new Map<string, string>()
  for (let n = 0; n < rows; n++) {
    const metadata = `{"tool_interactions": [${round}, ${n}]}`
    written.set(await insertMessage(environment, conversationId, metadata), metadata)
  }
  return written
}

async function expectWhole(written: Map<string, string>, within: TestEnvironment): Promise<void> {
  const wanted = await Promise.all([...written.values()].map(text => asJsonbText(within, text)))
  expect(await hydratedMany(within, [...written.keys()])).toEqual(wanted)
  const { rows } = await within.admin.query('select * from lighter.failed_jobs')
  expect(rows).toEqual([])
}

/** As a mounted secret changes: from one whole content to the next. */
async function put(file: string, content: string): Promise<void> {
  await writeFile(`${file}.new`, `${content}\n`)
  await rename(`${file}.new`, file)
}

const withPassword = (url: string, password: string) => {
  const changed = new URL(url)
  changed.password = password
  return changed.href
}

describe('the password of the database', () => {
  test('in a file is read again with each new connection', async () => {
    const login = await createLogin(environment)
    const file = path.join(await temporaryDir('secret'), 'url')
    await put(file, login.url)
    const { lines } = await start({ DATABASE_URL: '', DATABASE_URL_FILE: file })
    const written = await write(5, 0)
    await drained(environment)

    await login.alter(`password 'other'`)
    await login.terminate()
    for (const [id, metadata] of await write(5, 1)) written.set(id, metadata)
    await until(
      () => lines.some(line => String(line.hint).includes('DATABASE_URL_FILE')),
      'the log says what is wrong, and what to do',
    )
    // Half a secret is none.
    await writeFile(file, 'postgres')
    await put(file, withPassword(login.url, 'other'))
    await drained(environment)
    await expectWhole(written, environment)
    await until(
      () => lines.filter(line => line.msg === 'listening for notifications').length > 1,
      'it listens again',
    )
  })

  test('in the environment: open connections go on, and without them it waits to be restarted', async () => {
    const login = await createLogin(environment)
    const { daemon, lines } = await start({ DATABASE_URL: login.url })
    const written = await write(5, 0)
    await drained(environment)
    await login.alter(`password 'other'`)
    for (const [id, metadata] of await write(5, 1)) written.set(id, metadata)
    await drained(environment)

    await login.terminate()
    for (const [id, metadata] of await write(5, 2)) written.set(id, metadata)
    await until(
      () => lines.some(line => String(line.hint).includes('restart')),
      'the log says what is wrong, and what to do',
    )
    expect(await daemon.stop()).toBe(true)
    await start({ DATABASE_URL: withPassword(login.url, 'other') })
    await drained(environment)
    await expectWhole(written, environment)
  })
})

test('keys of the store in files are read again: until they are there no row is blamed, and the log says what to do', async () => {
  const dir = await temporaryDir('r2')
  const persistDir = path.join(dir, 'r2')
  const old = await startR2({ bucket: 'bucket', persistDir })
  const files = { id: path.join(dir, 'id'), secret: path.join(dir, 'secret') }
  await put(files.id, old.accessKeyId)
  await put(files.secret, old.secretAccessKey)
  const { lines } = await start({
    R2_ENDPOINT: old.endpoint,
    R2_BUCKET: 'bucket',
    R2_ACCESS_KEY_ID: '',
    R2_SECRET_ACCESS_KEY: '',
    R2_ACCESS_KEY_ID_FILE: files.id,
    R2_SECRET_ACCESS_KEY_FILE: files.secret,
  })
  const written = await write(5, 0)
  await drained(environment)

  // The store's keys are others now, and the old ones are refused.
  await old.stop()
  const kept = path.join(persistDir, 'credentials.json')
  const keys = { accessKeyId: 'f'.repeat(32), secretAccessKey: '0'.repeat(64) }
  expect(JSON.parse(await readFile(kept, 'utf8'))).not.toEqual(keys)
  await writeFile(kept, JSON.stringify(keys))
  const renewed = await startR2({ bucket: 'bucket', persistDir, port: Number(new URL(old.endpoint).port) })
  onTestFinished(() => renewed.stop())
  for (const [id, metadata] of await write(5, 1)) written.set(id, metadata)
  await until(
    () => lines.some(line => String(line.hint).includes('R2_ACCESS_KEY_ID')),
    'the log says what is wrong, and what to do',
  )
  expect(JSON.stringify(lines)).toMatch(/40[13] Unauthorized|InvalidAccessKeyId/)
  const { rows } = await environment.admin.query(
    'select count(*)::int as n, max(attempts) as attempts from lighter.jobs',
  )
  expect(rows[0].n).toBe(5)

  await put(files.id, keys.accessKeyId)
  await put(files.secret, keys.secretAccessKey)
  await drained(environment, 60_000)
  const store = openStore({
    ...environment.config().store,
    endpoint: renewed.endpoint,
    bucket: 'bucket',
    ...keys,
  })
  onTestFinished(() => store.close())
  await expectWhole(written, { ...environment, store })
}, 120_000)
