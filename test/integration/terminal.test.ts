// How the command speaks to a terminal and to a pipe. The terminal is a real one, made by script(1).
import { execFile, spawnSync } from 'node:child_process'
import path from 'node:path'
import { beforeAll, describe, expect, test } from 'vitest'
import { insertMessage, newConversation, useEnvironment } from '../support/environment.ts'
import { emptyQueue } from '../support/queue.ts'

const cli = path.join(import.meta.dirname, '../../src/cli/main.ts')
const hasTerminal = spawnSync('script', ['--version']).stdout?.toString().includes('util-linux') === true
const esc = '\x1b'

const environment = await useEnvironment()

interface Output {
  status: number
  stdout: string
  stderr: string
}

function execute(file: string, args: string[], env: Record<string, string>): Promise<Output> {
  const { NO_COLOR: _, FORCE_COLOR: __, CI: ___, COLORTERM: ____, ...inherited } = process.env
  return new Promise(resolve =>
    execFile(file, args, { env: { ...inherited, TERM: 'xterm-256color', ...env } }, (error, stdout, stderr) =>
      resolve({ status: typeof error?.code === 'number' ? error.code : 0, stdout, stderr }),
    ),
  )
}

const piped = (args: string[], env: Record<string, string> = {}) =>
  execute(process.execPath, [cli, ...args], env)

/** Standard output and standard error are the terminal. */
const onTerminal = (args: string[], env: Record<string, string> = {}, columns = 80) =>
  execute(
    'script',
    [
      '-qec',
      `stty cols ${columns}; ${[process.execPath, cli, ...args].map(word => `'${word}'`).join(' ')}`,
      '/dev/null',
    ],
    env,
  )

// Without settings: fast, and it fails in red.
const withoutSettings = { DATABASE_URL: '', ADMIN_DATABASE_URL: '', R2_BUCKET: '' }

describe('colours', () => {
  test('are not in a pipe', async () => {
    const doctor = await piped(['doctor'], withoutSettings)
    const start = await piped(['start'], withoutSettings)
    expect(doctor.stdout).toContain('FAIL')
    expect(start.stderr).toContain('error: ')
    expect(doctor.stdout + start.stderr).not.toContain(esc)
  })

  test('are in a pipe that asks for them', async () => {
    const { stdout } = await piped(['doctor'], { ...withoutSettings, FORCE_COLOR: '1' })
    expect(stdout).toContain(`${esc}[31mFAIL`)
  })

  test.runIf(hasTerminal)('are on a terminal, unless NO_COLOR or the terminal is against it', async () => {
    const seen = async (env: Record<string, string>) =>
      (await onTerminal(['doctor'], { ...withoutSettings, ...env })).stdout
    expect(await seen({})).toContain(`${esc}[31mFAIL`)
    for (const env of [{ NO_COLOR: '1' }, { TERM: 'dumb' }, { FORCE_COLOR: '0' }]) {
      const text = await seen(env)
      expect(text).toContain('FAIL')
      expect(text).not.toContain(esc)
    }
  })
})

describe('a table', () => {
  beforeAll(async () => {
    for (let i = 0; i < 3; i++) {
      const { conversationId } = await newConversation(environment)
      await insertMessage(environment, conversationId, '{"tool_interactions": [1]}')
    }
    await emptyQueue(environment)
  })
  const args = ['backfill', '--dry-run']

  test.runIf(hasTerminal)('fits the terminal, what is cut first is text', async () => {
    const { stdout } = await onTerminal(args, { ...environment.env, NO_COLOR: '1' }, 40)
    const table = stdout.split(/\r?\n/).slice(stdout.split(/\r?\n/).findIndex(line => /^tenant/.test(line)))
    expect(table.length).toBeGreaterThan(3)
    for (const line of table) expect(line.length).toBeLessThanOrEqual(40)
    expect(table[1]).toMatch(/^[0-9a-f-]+… +1 +\d+ B$/)
  })

  test('is whole in a pipe', async () => {
    const { stdout } = await piped(args, environment.env)
    expect(stdout.match(/^[0-9a-f-]{36} +1 +\d+ B$/gm)).toHaveLength(3)
  })
})

describe('an error', () => {
  test.each([
    [['start'], withoutSettings, 'hint: See .env.example'],
    [['sweep', 'everything'], {}, 'lighter --help, or lighter <command> --help'],
    [['swep'], {}, 'Did you mean sweep?'],
    [['stats'], { DATABASE_URL: 'postgresql://u:p@127.0.0.1:1/x' }, 'hint: Nothing answers there'],
  ])('of %j says what to do next', async (words, env, next) => {
    const { status, stderr } = await piped(words, env)
    expect(stderr).toContain(next)
    expect(status).not.toBe(0)
    expect(stderr).not.toContain('    at ')
  })
})
