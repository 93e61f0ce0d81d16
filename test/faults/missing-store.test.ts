// A daemon that was not told of an object store: it runs, says so, and leaves every row as it is.
import { expect, test } from 'vitest'
import { lighter } from '../support/black-box.ts'
import {
  drained,
  insertMessage,
  newConversation,
  rawMetadata,
  startDaemon,
  useFreshEnvironment,
} from '../support/environment.ts'
import { type RunningCli, startCli } from '../support/process.ts'

const environment = useFreshEnvironment()
const storeVariables = ['R2_ENDPOINT', 'R2_BUCKET', 'R2_ACCESS_KEY_ID', 'R2_SECRET_ACCESS_KEY']

function without(names: string[]): Record<string, string> {
  const kept = Object.entries(environment.env).filter(([name]) => !names.includes(name))
  return { ...Object.fromEntries(kept), AUTH_MODE: 'dev', LOG_LEVEL: 'info' }
}

async function addressOf(daemon: RunningCli): Promise<string> {
  await daemon.says('the HTTP API listens')
  return String(daemon.logged().find(line => line.msg === 'the HTTP API listens')?.address)
}

const heavy = '{"tool_interactions": [{"n": 1.10}]}'

/** A fresh process takes its time on a busy machine. */
const timeout = 180_000

test(
  'without any of its variables it starts, names them, and offloads nothing',
  async () => {
    const missing = ['R2_ACCOUNT_ID', 'R2_ACCESS_KEY_ID', 'R2_SECRET_ACCESS_KEY', 'R2_BUCKET']
    const daemon = startCli(['start'], { env: without(storeVariables) })
    const address = await addressOf(daemon)
    const said = daemon.logged().find(line => Array.isArray(line.missing))
    expect(said?.missing).toEqual(missing)
    expect(said?.msg).toMatch(/nothing is offloaded/)

    const check = await fetch(`${address}/api/storage/r2/check`)
    expect(check.status).toBe(200)
    expect(await check.json()).toMatchObject({
      status: 'ok',
      r2: { ok: false, reason: 'missing_env', missing },
      env: Object.fromEntries(storeVariables.map(name => [name, false])),
    })

    const { tenantId, conversationId } = await newConversation(environment)
    const id = await insertMessage(environment, conversationId, heavy)
    const headers = { 'x-tenant-id': tenantId }
    expect((await fetch(`${address}/healthz`)).status).toBe(200)
    expect((await fetch(`${address}/readyz`)).status).toBe(503)
    expect((await fetch(`${address}/api/storage/artifacts`, { headers })).status).toBe(200)
    const put = await fetch(`${address}/api/storage/artifacts`, {
      method: 'POST',
      headers: { ...headers, 'content-type': 'application/json' },
      body: '{"kind": "agent_trace", "payload": 1}',
    })
    expect(put.status).toBe(503)
    expect(await put.json()).toMatchObject({ code: 'store_unavailable' })

    daemon.signal('SIGTERM')
    expect((await daemon.ended).code).toBe(0)
    expect(await rawMetadata(environment, id)).toBe(heavy)

    // Nothing was lost of what is to be done.
    const whole = await startDaemon(environment)
    await drained(environment)
    expect(await rawMetadata(environment, id)).toContain('tool_interactions_ref')
    await whole.stop()
  },
  timeout,
)

test(
  'a command that can do nothing without a store refuses, and names what is missing',
  async () => {
    const { code, stderr } = await lighter({ ...environment, env: without(['R2_BUCKET']) }, [
      'sweep',
      'orphans',
    ])
    expect(code).toBe(1)
    expect(stderr).toContain('R2_BUCKET')
  },
  timeout,
)

test(
  'a variable that is set and wrong still keeps it from starting',
  async () => {
    const env = { ...without(storeVariables), R2_PREFIX: 'no slash at the end' }
    const { code, stderr } = await lighter({ ...environment, env }, ['start'])
    expect(code).toBe(1)
    expect(stderr).toContain('R2_PREFIX')
  },
  timeout,
)
