// The image, built and run as docs/containers.md says: a root that can't be written, no capabilities, a clean stop.
// LIGHTER_IMAGE names one that is built already. Needs a Docker daemon on Linux: containers are on the host's network,
// where the test's servers listen.
import { execFile } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import path from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, beforeEach, expect, onTestFinished, test } from 'vitest'
import { freePort } from '../../src/embedded/ports.ts'
import { dockerMissing } from '../support/backends/backend.ts'
import {
  createEnvironment,
  drained,
  hydrated,
  insertMessage,
  newConversation,
  rawMetadata,
  type TestEnvironment,
  until,
} from '../support/environment.ts'

const repository = path.join(import.meta.dirname, '..', '..')
const minutes = 60_000
const missing =
  process.platform === 'linux' ? await dockerMissing() : `this is ${process.platform}, not Linux`
if (missing !== undefined)
  console.warn(`The image is NOT tested (test/integration/image.test.ts): ${missing}`)

const built = `pg-lighter-test:${randomUUID()}`
const image = process.env.LIGHTER_IMAGE || built
let environment: TestEnvironment

beforeEach(context => context.skip(missing !== undefined, missing))
beforeAll(async () => {
  if (missing === undefined && image === built) await docker('build', '--tag', image, repository)
  environment = await createEnvironment()
}, 15 * minutes)
afterAll(async () => {
  await environment.close()
  if (missing === undefined && image === built) await docker('image', 'rm', image)
})

async function docker(...args: string[]): Promise<string> {
  const { stdout } = await promisify(execFile)('docker', args, { maxBuffer: 16 * 1024 * 1024 }).catch(
    error => {
      throw new Error(`docker ${args.join(' ')}: ${error.message}\n${error.stdout}\n${error.stderr}`)
    },
  )
  return stdout.trim()
}

/** As strict as the compose file and the manifests have it. */
const restrictions = ['--read-only', '--tmpfs=/tmp', '--cap-drop=ALL', '--security-opt=no-new-privileges']

const variables = (env: Record<string, string>) =>
  Object.entries({ ...environment.env, ...env }).map(([name, value]) => `--env=${name}=${value}`)

/** A command, run to its end. */
const lighter = (...args: string[]) =>
  docker('run', '--rm', '--network=host', ...restrictions, ...variables({}), image, ...args)

/** A daemon, removed when the test ends. */
async function startDaemonContainer(): Promise<{ id: string; port: number }> {
  const port = await freePort()
  const env = { API_PORT: String(port), LOG_LEVEL: 'info' }
  const id = await docker('run', '--detach', '--network=host', ...restrictions, ...variables(env), image)
  onTestFinished(async () => {
    await docker('rm', '--force', id)
  })
  return { id, port }
}

const health = (id: string) => docker('inspect', '--format', '{{.State.Health.Status}}', id)
const untilHealthy = (id: string) =>
  until(async () => (await health(id)) === 'healthy', 'the container is healthy', 3 * minutes)

test('a daemon becomes healthy, offloads, and ends cleanly at SIGTERM', {
  timeout: 5 * minutes,
}, async () => {
  const { id, port } = await startDaemonContainer()
  await untilHealthy(id)
  expect(await (await fetch(`http://127.0.0.1:${port}/readyz`)).json()).toMatchObject({ status: 'ok' })

  const { conversationId } = await newConversation(environment)
  const row = await insertMessage(
    environment,
    conversationId,
    '{"tool_interactions": [12345678901234567890.5]}',
  )
  await drained(environment, 2 * minutes)
  expect(await rawMetadata(environment, row)).toContain('tool_interactions_ref')
  expect(await hydrated(environment, row)).toBe('{"tool_interactions": [12345678901234567890.5]}')

  await docker('stop', '--time=60', id)
  expect(await docker('inspect', '--format', '{{.State.ExitCode}}', id)).toBe('0')
  expect(await docker('logs', id)).toContain('"msg":"stopped"')
})

test('a daemon that is stopped in its tracks becomes unhealthy', { timeout: 5 * minutes }, async () => {
  const { id } = await startDaemonContainer()
  await untilHealthy(id)
  await docker(
    'exec',
    id,
    'node',
    '--eval',
    'process.kill(Number(fs.readFileSync("/proc/1/task/1/children")), "SIGSTOP")',
  )
  await until(async () => (await health(id)) === 'unhealthy', 'the container is unhealthy', 3 * minutes)
})

test('neither root nor able to write its own files', { timeout: 5 * minutes }, async () => {
  const { id } = await startDaemonContainer()
  expect(await docker('exec', id, 'id', '--user')).toBe('1000')
  for (const place of ['/app/x', '/x'])
    await expect(docker('exec', id, 'touch', place)).rejects.toThrow(/Read-only/)
  await docker('exec', id, 'touch', '/tmp/x')
})

test('other commands are given by arguments, the demo on servers that are there already', {
  timeout: 5 * minutes,
}, async () => {
  expect(await lighter('--version')).toMatch(/^\d+\.\d+\.\d+$/)
  expect(await lighter('migrate')).toContain('up to date')
  const report = await lighter('demo', '--external', '--json', '--messages=50', '--rate=0', '--large-mb=6')
  expect(JSON.parse(report)).toMatchObject({ messages: 50, mismatched: 0 })
})
