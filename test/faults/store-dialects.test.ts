// Stores that are a little different, and machines that are set up for another one.
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterAll, expect, onTestFinished, test } from 'vitest'
import { hydratedByCli, lighterOk } from '../support/black-box.ts'
import {
  drained,
  insertMessage,
  newConversation,
  startDaemon,
  useEnvironment,
} from '../support/environment.ts'
import { startFaultyStore } from '../support/request-fault.ts'

const environment = await useEnvironment()
const store = await startFaultyStore(environment.env.R2_ENDPOINT ?? '')
afterAll(() => store.close())

async function offloadedRow(): Promise<{ tenantId: string; row: string }> {
  const { tenantId, conversationId } = await newConversation(environment)
  const row = await insertMessage(environment, conversationId, '{"tool_interactions": ["kept outside"]}')
  const daemon = await startDaemon(environment)
  await drained(environment)
  await daemon.stop()
  return { tenantId, row }
}

async function objectsOf(tenantId: string): Promise<number> {
  let objects = 0
  for await (const _ of environment.store.list(`${environment.env.R2_PREFIX}tenants/${tenantId}/`)) objects++
  return objects
}

test.each([
  { status: 400, code: 'MissingContentMD5' },
  { status: 400, code: 'InvalidRequest' },
  { status: 501, code: 'NotImplemented' },
])('a store that answers DeleteObjects with $status $code is asked for single deletes', async fault => {
  const { tenantId } = await offloadedRow()
  expect(await objectsOf(tenantId)).toBeGreaterThan(0)
  await environment.admin.query(
    'delete from conversation_messages m using conversations c where c.id = m.conversation_id and c.tenant_id = $1',
    [tenantId],
  )
  const isDeletion = (method: string, url: string) => method === 'POST' && url.includes('?delete')
  store.fault = (method, url) => (isDeletion(method, url) ? fault : null)
  await lighterOk(environment, ['erase', '--tenant', tenantId, '--yes'], {
    env: { R2_ENDPOINT: store.endpoint },
  })
  expect(await objectsOf(tenantId)).toBe(0)
})

test("a machine's settings for AWS change nothing", async () => {
  const { row } = await offloadedRow()
  const folder = await mkdtemp(path.join(tmpdir(), 'lighter-aws-'))
  onTestFinished(() => rm(folder, { recursive: true }))
  const config = path.join(folder, 'config')
  const section = [
    'use_fips_endpoint = true',
    'use_dualstack_endpoint = true',
    'region = eu-central-1',
    'endpoint_url = http://127.0.0.1:1',
    'defaults_mode = mobile',
    's3_use_arn_region = true',
    'request_checksum_calculation = when_required',
    'retry_mode = adaptive',
    'max_attempts = no number',
  ].join('\n')
  await writeFile(config, `[default]\n${section}\n[profile other]\n${section}\n`)
  const shared = { AWS_CONFIG_FILE: config, AWS_SHARED_CREDENTIALS_FILE: config }
  const settings = [
    { AWS_USE_FIPS_ENDPOINT: 'true' },
    { AWS_USE_DUALSTACK_ENDPOINT: 'true' },
    { AWS_USE_FIPS_ENDPOINT: 'no boolean', AWS_USE_DUALSTACK_ENDPOINT: 'no boolean' },
    { AWS_ENDPOINT_URL: 'http://127.0.0.1:1', AWS_ENDPOINT_URL_S3: 'http://127.0.0.1:1' },
    { AWS_REGION: 'eu-central-1', AWS_DEFAULTS_MODE: 'no mode', AWS_MAX_ATTEMPTS: 'x', AWS_RETRY_MODE: 'x' },
    { AWS_S3_USE_ARN_REGION: 'x', AWS_S3_DISABLE_MULTIREGION_ACCESS_POINTS: 'x' },
    { AWS_S3_DISABLE_EXPRESS_SESSION_AUTH: 'x', AWS_SIGV4A_SIGNING_REGION_SET: '*' },
    { AWS_AUTH_SCHEME_PREFERENCE: 'sigv4a', AWS_SDK_UA_APP_ID: 'x'.repeat(100) },
    { AWS_REQUEST_CHECKSUM_CALCULATION: 'x', AWS_RESPONSE_CHECKSUM_VALIDATION: 'x' },
    { AWS_PROFILE: 'no such profile', ...shared },
    { AWS_PROFILE: 'other', AWS_SDK_LOAD_CONFIG: '1', ...shared },
  ]
  for (const env of settings) {
    const text = await hydratedByCli(environment, 'conversation_messages', row, [], { env })
    expect(text, JSON.stringify(env)).toBe('{"tool_interactions": ["kept outside"]}')
  }
}, 180_000)
