// Values of the modes stub and whole over every way of reading: the client, the API, the dashboard, export, doctor, erase.
import { randomBytes, randomUUID } from 'node:crypto'
import pg from 'pg'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { lookUpRow } from '../../src/dashboard/lookup.ts'
import { sampleLostPointers } from '../../src/doctor/lost-pointers.ts'
import { findMovedRows } from '../../src/doctor/moved-rows.ts'
import { surveyErasure } from '../../src/erase/survey.ts'
import { asTenantId, createLighterClient, HydrateError, type LighterClient } from '../../src/index.ts'
import { readRowStatus } from '../../src/reports/row-status.ts'
import { holdScope } from '../../src/restore/hold.ts'
import { restoreSource } from '../../src/restore/restore.ts'
import { startApi, type TestApi } from '../support/api.ts'
import { drained, useEnvironment } from '../support/environment.ts'
import { errorOf } from '../support/sql.ts'
import {
  combinations,
  heavyValue,
  hydratedValue,
  insertValue,
  newValueTable,
  rawValue,
  sourceOf,
  updateValue,
  type ValueTable,
} from '../support/value-tables.ts'

const environment = await useEnvironment()
let api: TestApi
let tenantPool: pg.Pool
let login: string

beforeAll(async () => {
  api = await startApi(environment, { env: { API_RATE_LIMIT: '0' } })
  login = `client_${randomBytes(6).toString('hex')}`
  await environment.admin.query(`create role ${login} login password 'secret' in role lighter_tenant`)
  const url = new URL(environment.urls.admin)
  url.username = login
  url.password = 'secret'
  tenantPool = new pg.Pool({ connectionString: url.href, max: 4 })
})
afterAll(async () => {
  await tenantPool.end()
  await api.daemon.stop()
  await environment.admin.query(`drop role ${login}`)
})

const transports: [string, (tenantId: string) => LighterClient][] = [
  ['over HTTP', tenantId => createLighterClient({ baseUrl: api.url, tenantId })],
  [
    'over pg and S3',
    tenantId => createLighterClient({ pool: tenantPool, store: environment.store, tenantId }),
  ],
]

async function offloaded([type, mode]: (typeof combinations)[number], kind = 'agent_trace') {
  const table = await newValueTable(environment, type, mode, { attach: `, phase2_kind => '${kind}'` })
  const tenantId = randomUUID()
  const id = await insertValue(environment, table, heavyValue(type), tenantId)
  await drained(environment)
  const { pointer } = await rawValue(environment, table, id)
  return { table, tenantId, id, pointer: pointer ?? '' }
}

/** As an application reads it. */
async function row({ name }: ValueTable, id: string): Promise<Record<string, unknown>> {
  const { rows } = await environment.app.query(`select * from public.${name} where id = $1`, [id])
  return rows[0]
}

describe.each(transports)('the client %s', (_, clientOf) => {
  test.each(combinations)('%s in mode %s', async (type, mode) => {
    const { table, tenantId, id } = await offloaded([type, mode])
    const client = clientOf(tenantId)
    const options = {
      column: 'value',
      kind: 'agent_trace',
      ...(mode === 'whole' && { pointerColumn: 'value_artifact_id' }),
    }
    const read = await row(table, id)
    const expected =
      type === 'bytea'
        ? new Uint8Array(heavyValue(type))
        : type === 'text'
          ? heavyValue(type).toString()
          : JSON.parse(heavyValue(type).toString())
    const hydrated = await client.hydrate(read, options)
    expect(type === 'bytea' ? new Uint8Array(hydrated.value as Uint8Array) : hydrated.value).toEqual(expected)
    expect({ ...hydrated, value: null }).toEqual({ ...read, value: null })
    // What has no pointer is not asked for.
    const light = { value: 'light', value_artifact_id: randomUUID() }
    expect(await clientOf(randomUUID()).hydrateMany([light], options)).toEqual([light])
    // Another tenant's artifact, and one of another kind.
    const stranger = clientOf(randomUUID())
    const others = [
      () => stranger.hydrateMany([read], options),
      () => client.hydrateMany([read], { ...options, kind: 'attachment' }),
    ]
    for (const ask of others) {
      if (mode === 'stub') expect(await ask()).toEqual([read])
      else {
        const error = await ask().catch((reason: unknown) => reason)
        expect(error).toBeInstanceOf(HydrateError)
        expect(error).toMatchObject({ failures: [{ error: { code: 'artifact_not_found' } }] })
      }
    }
  })
})

test.each(combinations)(
  '%s in mode %s: the API serves the bytes under their media type',
  async (type, mode) => {
    const { tenantId, pointer } = await offloaded([type, mode])
    const answer = await fetch(`${api.url}/api/storage/artifacts/${pointer}?raw=1`, {
      headers: { 'x-tenant-id': tenantId },
    })
    expect(Buffer.from(await answer.arrayBuffer())).toEqual(heavyValue(type))
    expect(answer.headers.get('content-type')).toBe(
      {
        jsonb: 'application/json',
        json: 'application/json',
        text: 'text/plain; charset=utf-8',
        bytea: 'application/octet-stream',
      }[type],
    )
  },
)

test.each(combinations)('%s in mode %s: what is said of the row', async (type, mode) => {
  const { table, tenantId, id, pointer } = await offloaded([type, mode])
  const source = await sourceOf(environment, table)
  const facts = await lookUpRow(environment.worker, source.id, id)
  expect(facts.pointers).toMatchObject([
    {
      name: mode === 'whole' ? 'value_artifact_id' : 'artifact_ref',
      artifact_id: pointer,
      artifact: { size_bytes: heavyValue(type).length },
    },
  ])
  expect(await readRowStatus(environment.worker, source, id)).toMatchObject({
    state: 'offloaded',
    pointers: [{ artifact_id: pointer }],
  })
  const light = await insertValue(environment, table, heavyValue(type, 'light', 20), tenantId)
  await drained(environment)
  expect(await readRowStatus(environment.worker, source, light)).toMatchObject({
    state: 'nothing_to_offload',
    pointers: [],
  })
  expect((await sampleLostPointers(environment.worker, source, 10)).rowIds).toEqual([])
  const survey = await surveyErasure(environment.worker, environment.store.prefix, {
    tenantId: asTenantId(tenantId),
    entity: null,
  })
  expect(survey).toMatchObject({ artifacts: 1, rows_pointing: 1 })
  await environment.admin.query(
    `update public.${table.name} set tenant_id = gen_random_uuid() where id = $1`,
    [id],
  )
  expect((await findMovedRows(environment.worker)).rows).toContainEqual(
    expect.objectContaining({ table: source.tableSql, rowId: id, artifactTenantId: tenantId }),
  )
})

test.each(combinations)(
  '%s in mode %s: a restored row is pinned, and stays inline when it is written again',
  async (type, mode) => {
    const { table, id } = await offloaded([type, mode])
    const source = await sourceOf(environment, table)
    const scope = { tenantId: null, rowId: id }
    await holdScope(environment.worker, [source], scope)
    const failures: unknown[] = []
    await restoreSource(
      {
        pool: environment.worker,
        store: environment.store,
        config: environment.config().offload,
        rate: 1000,
        signal: new AbortController().signal,
        onProgress: () => undefined,
        onFailure: failure => failures.push(failure),
      },
      source,
      scope,
    )
    expect(failures).toEqual([])
    expect(await rawValue(environment, table, id)).toEqual({ bytes: heavyValue(type), pointer: null })
    await updateValue(environment, table, id, heavyValue(type, 'again'))
    await drained(environment)
    expect(await rawValue(environment, table, id)).toEqual({
      bytes: heavyValue(type, 'again'),
      pointer: null,
    })
  },
)

test.each(combinations)(
  '%s in mode %s: what was deleted is an error, and never shown as the value',
  async (type, mode) => {
    const { table, id, pointer } = await offloaded([type, mode])
    await environment.admin.query(
      `update artifact_refs set deleted_at = now(), deleted_reason = 'test' where id = $1`,
      [pointer],
    )
    expect(await errorOf(hydratedValue(environment, table, id))).toMatchObject({ code: 'artifact_gone' })
  },
)
