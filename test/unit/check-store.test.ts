// The words in which the original system told whether its bucket can be reached.
import { expect, test } from 'vitest'
import { checkStore } from '../../src/api/routes/check.ts'
import { storeVariablesOf } from '../../src/config.ts'
import { StoreError } from '../../src/errors.ts'

const complete = {
  R2_ACCOUNT_ID: 'account',
  R2_ACCESS_KEY_ID: 'key-id',
  R2_SECRET_ACCESS_KEY: 'very-secret',
  R2_BUCKET: 'bucket',
}
const set = (names: string[]) =>
  Object.fromEntries(
    ['R2_ACCOUNT_ID', 'R2_ACCESS_KEY_ID', 'R2_SECRET_ACCESS_KEY', 'R2_BUCKET', 'R2_ENDPOINT'].map(name => [
      name,
      names.includes(name),
    ]),
  )
const reachable = async () => 'HeadBucket'

test('a bucket that answers', async () => {
  expect(await checkStore(storeVariablesOf(complete), reachable)).toEqual({
    status: 'ok',
    r2: { ok: true, method: 'HeadBucket' },
    env: set(Object.keys(complete)),
  })
})

test.each<[string, Record<string, string>, string[]]>([
  ['nothing', {}, ['R2_ACCOUNT_ID', 'R2_ACCESS_KEY_ID', 'R2_SECRET_ACCESS_KEY', 'R2_BUCKET']],
  ['an empty secret', { ...complete, R2_SECRET_ACCESS_KEY: '' }, ['R2_SECRET_ACCESS_KEY']],
])('%s is named as missing, and nobody is asked', async (_, env, missing) => {
  const check = () => Promise.reject(new Error('asked'))
  const found = await checkStore(storeVariablesOf(env), check)
  expect(found.r2).toEqual({ ok: false, reason: 'missing_env', missing })
  expect(found.env).toEqual(set(Object.keys(env).filter(name => env[name] !== '')))
})

test('an endpoint stands for the account, a file for a secret', async () => {
  const env = {
    R2_ENDPOINT: 'http://x',
    R2_ACCESS_KEY_ID: 'a',
    R2_SECRET_ACCESS_KEY_FILE: '/run/s',
    R2_BUCKET: 'b',
  }
  expect((await checkStore(storeVariablesOf(env), reachable)).r2).toEqual({ ok: true, method: 'HeadBucket' })
})

test.each(['bucket_not_found', 'store_access_denied', 'store_unavailable', 'store_refused'])(
  '%s is told without a host, a key or a request in it',
  async code => {
    const check = () => Promise.reject(new StoreError(code, 'HeadBucket http://internal:9000 very-secret'))
    const found = await checkStore(storeVariablesOf(complete), check)
    expect(found.r2).toMatchObject({ ok: false, reason: code, error: expect.stringMatching(/^the /) })
    expect(JSON.stringify(found)).not.toMatch(/internal|very-secret|HeadBucket/)
  },
)
