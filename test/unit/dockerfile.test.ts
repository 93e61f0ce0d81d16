// What the Dockerfile promises, read from it: no Docker is needed. That the image keeps it, test/integration/image.test.ts.
import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readFileSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import path from 'node:path'
import { promisify } from 'node:util'
import { DockerfileParser, type Instruction } from 'dockerfile-ast'
import { expect, test } from 'vitest'
import { environmentSchema } from '../../src/config.ts'
import { version } from '../../src/version.ts'

const repository = path.join(import.meta.dirname, '..', '..')
const read = (name: string) => readFileSync(path.join(repository, name), 'utf8')
const dockerfile = DockerfileParser.parse(read('Dockerfile'))

interface Stage {
  name: string | null
  instructions: { keyword: string; args: string }[]
}

const stages: Stage[] = []
for (const instruction of dockerfile.getInstructions()) {
  const keyword = instruction.getKeyword()
  if (keyword === 'FROM') {
    const name = / AS (\S+)$/i.exec(argumentsOf(instruction))?.[1] ?? null
    stages.push({ name, instructions: [] })
  } else stages.at(-1)?.instructions.push({ keyword, args: argumentsOf(instruction) })
}

/** On one line, without the comments between its lines. */
function argumentsOf(instruction: Instruction): string {
  return instruction
    .getTextContent()
    .replace(/^\S+\s+/, '')
    .split('\n')
    .filter(line => !/^\s*#/.test(line))
    .map(line => line.replace(/\\\s*$/, '').trim())
    .join(' ')
}

const last = stages.at(-1) ?? { name: null, instructions: [] }
const lastAll = (keyword: string) => last.instructions.filter(i => i.keyword === keyword).map(i => i.args)

/** The one of its kind in the last stage. */
function lastOne(keyword: string): string {
  const [found, ...more] = lastAll(keyword)
  if (found === undefined || more.length > 0) throw new Error(`${more.length} more ${keyword} than one`)
  return found
}

const copies = (stage: Stage) =>
  stage.instructions
    .filter(i => i.keyword === 'COPY')
    .map(({ args }) => {
      const words = args.split(/\s+/)
      const from = words.find(word => word.startsWith('--from='))?.slice('--from='.length) ?? null
      return { from, sources: words.filter(word => !word.startsWith('--')).slice(0, -1) }
    })

test('the process is no root, by a number that orchestrators can check', () => {
  expect(lastOne('USER')).toMatch(/^[1-9]\d*:[1-9]\d*$/)
})

test('signals reach the command, and other commands are given by arguments', () => {
  expect(JSON.parse(lastOne('ENTRYPOINT'))).toEqual(['tini', '--', 'node', '/app/dist/cli/main.js'])
  expect(JSON.parse(lastOne('CMD'))).toEqual(['start'])
})

test('packages come from the lock file without running their scripts, and the last stage has none of development', () => {
  const installs = stages.flatMap(stage =>
    stage.instructions
      .filter(i => i.keyword === 'RUN' && /\bnpm\b/.test(i.args) && !/npm run build/.test(i.args))
      .map(({ args }) => ({ stage: stage.name, args })),
  )
  expect(installs.length).toBe(2)
  for (const { args } of installs) expect(args).toMatch(/^npm ci .*--ignore-scripts/)
  const withModules = copies(last).filter(({ sources }) => sources.some(s => s.includes('node_modules')))
  expect(withModules.map(copy => copy.from)).toHaveLength(1)
  const [{ from } = { from: null }] = withModules
  expect(installs.find(install => install.stage === from)?.args).toContain('--omit=dev')
  expect(lastAll('RUN')).toEqual([])
})

test('what the last stage holds is the compiled command, its SQL and its packages', () => {
  const held = copies(last).flatMap(copy => copy.sources)
  expect(held.sort()).toEqual(
    ['/app/dist', '/app/node_modules', '/usr/bin/tini-static', 'LICENSE', 'package.json', 'sql'].sort(),
  )
})

test('everything that is copied from the repository is there, and let through by .dockerignore', () => {
  const [everything, ...allowed] = read('.dockerignore')
    .split('\n')
    .filter(line => line !== '' && !line.startsWith('#'))
  expect(everything).toBe('*')
  const sources = stages.flatMap(stage => copies(stage).flatMap(c => (c.from === null ? c.sources : [])))
  for (const source of sources) expect(existsSync(path.join(repository, source)), source).toBe(true)
  expect([...new Set(sources.map(source => `!${source}`))].sort()).toEqual(allowed.sort())
})

test('variables that it sets exist, and the labels say which version it is', () => {
  const variables = lastAll('ENV').flatMap(args => args.split(' ').map(pair => pair.split('=')[0] ?? ''))
  for (const name of variables)
    expect(name === 'NODE_ENV' || name in environmentSchema.shape, name).toBe(true)
  expect(lastAll('ARG')).toContain(`VERSION=${version}`)
  const labels = lastOne('LABEL')
  for (const name of ['title', 'description', 'licenses', 'version', 'revision', 'base.name'])
    expect(labels).toContain(`org.opencontainers.image.${name}=`)
})

test('its check of health tells a daemon that answers from one that fails or is not there', async () => {
  const check = lastOne('HEALTHCHECK')
  const command: string[] = JSON.parse(check.slice(check.indexOf('CMD') + 3))
  expect(command[0]).toBe('node')
  const exitWith = (port: number) =>
    promisify(execFile)(process.execPath, command.slice(1), { env: { API_PORT: String(port) } }).then(
      () => 0,
      (error: { code: number }) => error.code,
    )
  let status = 200
  const asked: (string | undefined)[] = []
  const server = createServer((request, response) => {
    asked.push(request.url)
    response.writeHead(status).end()
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  expect(await exitWith(port)).toBe(0)
  status = 503
  expect(await exitWith(port)).toBe(1)
  server.close()
  server.closeAllConnections()
  expect(await exitWith(port)).toBe(1)
  expect(asked).toEqual(['/healthz', '/healthz'])
})
