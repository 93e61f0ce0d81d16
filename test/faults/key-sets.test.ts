// Key sets as issuers really have them: several keys, and none with an id.
import { randomUUID } from 'node:crypto'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import os from 'node:os'
import path from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { startApi, type TestApi } from '../support/api.ts'
import { useEnvironment } from '../support/environment.ts'
import { inSeconds, newSigningKey } from '../support/tokens.ts'

const environment = await useEnvironment()
const tenant = randomUUID()
const first = newSigningKey('first')
const second = newSigningKey('second')
const rsa = newSigningKey('rsa', 'RS256')
const stranger = newSigningKey('stranger')

const withoutKid = ({ kid: _, ...jwk }: typeof first.jwk) => jwk
const keySet = JSON.stringify({ keys: [first, second, rsa].map(key => withoutKid(key.jwk)) })

let folder: string
const server = createServer((_request, response) => response.end(keySet))
const started: TestApi[] = []

beforeAll(async () => {
  folder = await mkdtemp(path.join(os.tmpdir(), 'pg-lighter-keys-'))
  await writeFile(path.join(folder, 'jwks.json'), keySet)
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
})
afterAll(async () => {
  await Promise.all(started.map(api => api.daemon.stop()))
  server.close()
  await rm(folder, { recursive: true, force: true })
})

describe.each(['JWT_JWKS_URL', 'JWT_JWKS_FILE'])('%s with several keys and no kid', variable => {
  let api: TestApi
  beforeAll(async () => {
    const value =
      variable === 'JWT_JWKS_FILE'
        ? path.join(folder, 'jwks.json')
        : `http://127.0.0.1:${(server.address() as AddressInfo).port}/`
    api = await startApi(environment, { worker: false, env: { AUTH_MODE: 'jwt', [variable]: value } })
    started.push(api)
  })
  const list = (token: string) =>
    api.call(null, 'GET', '/api/storage/artifacts', { headers: { authorization: `Bearer ${token}` } })
  const noKid = { kid: undefined }

  test.each([
    ['first', first],
    ['second', second],
    ['only RSA', rsa],
  ])('takes a token of the %s key', async (_, key) => {
    expect((await list(key.token({ tenant_id: tenant }, noKid))).status).toBe(200)
  })

  test('refuses a token of a key that is not in it', async () => {
    const answer = await list(stranger.token({ tenant_id: tenant }, noKid))
    expect([answer.status, answer.json.code]).toEqual([401, 'unauthorized'])
  })

  test('says of an expired token of any of its keys that it has expired', async () => {
    for (const key of [first, second, rsa]) {
      const answer = await list(key.token({ tenant_id: tenant, exp: inSeconds(-600) }, noKid))
      expect([answer.status, answer.json.message]).toEqual([401, 'the token has expired'])
    }
  })

  test('refuses a token whose payload was changed after signing', async () => {
    const [head, , signature] = second.token({ tenant_id: randomUUID() }, noKid).split('.')
    const [, payload] = second.token({ tenant_id: tenant }, noKid).split('.')
    expect((await list(`${head}.${payload}.${signature}`)).status).toBe(401)
  })
})
