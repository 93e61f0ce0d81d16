import { spawn } from 'node:child_process'
import { once } from 'node:events'
import pg from 'pg'
import { expect, test } from 'vitest'
import { isDatabaseOutage, sqlState } from '../../src/errors.ts'

test('a broken pipe is an outage, though its code looks like an SQLSTATE', async () => {
  const child = spawn('sh', ['-c', 'exec 0<&-; echo closed; sleep 60'], { stdio: ['pipe', 'pipe', 'ignore'] })
  await once(child.stdout, 'data')
  const broken = once(child.stdin, 'error')
  child.stdin.write('nobody reads this')
  const [error] = await broken
  child.kill()
  expect(error).toMatchObject({ code: 'EPIPE' })
  expect(sqlState(error)).toBeUndefined()
  expect(isDatabaseOutage(error)).toBe(true)
})

test('an error of the server has its SQLSTATE', () => {
  const error = Object.assign(new pg.DatabaseError('terminating connection', 0, 'error'), { code: '57P01' })
  expect(sqlState(error)).toBe('57P01')
  expect(isDatabaseOutage(error)).toBe(true)
})
