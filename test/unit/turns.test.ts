// Who is next, of tenants that wait for something scarce.
import { expect, test } from 'vitest'
import { pickByTurns } from '../../src/offload/claim-fairly.ts'
import { createTurns } from '../../src/offload/turns.ts'

test('jobs are picked by turns of their tenants, in the order given', () => {
  const jobs = [...'aaaabaaac'].map((tenantId, n) => ({ tenantId, n }))
  const order = (limit: number) => pickByTurns(jobs, limit).map(job => `${job.tenantId}${job.n}`)
  expect(order(5)).toEqual(['a0', 'b4', 'c8', 'a1', 'a2'])
  expect(order(2)).toEqual(['a0', 'b4'])
  expect(order(100)).toHaveLength(9)
  expect(pickByTurns([], 5)).toEqual([])
})

test('jobs whose tenant is not known are one party among the others', () => {
  const jobs = [null, null, null, 'a'].map((tenantId, n) => ({ tenantId, n }))
  expect(pickByTurns(jobs, 2).map(job => job.tenantId)).toEqual([null, 'a'])
})

/** Runs work that ends when told; returns who has begun so far. */
function line(streams: number) {
  const turns = createTurns(streams)
  const begun: string[] = []
  const ends: (() => void)[] = []
  const enter = (name: string) => {
    void turns.run(name.slice(0, 1), () => {
      begun.push(name)
      return new Promise<void>(resolve => ends.push(resolve))
    })
  }
  const end = async () => {
    ends.shift()?.()
    await new Promise(setImmediate)
  }
  return { turns, begun, enter, end }
}

test('a tenant with many in line lets each other tenant go first, after one of its own', async () => {
  const { begun, enter, end } = line(1)
  for (const name of ['a1', 'a2', 'a3', 'a4', 'b1', 'c1', 'b2']) enter(name)
  for (let n = 0; n < 7; n++) await end()
  expect(begun).toEqual(['a1', 'a2', 'b1', 'c1', 'a3', 'b2', 'a4'])
})

test('no more run at once than there are streams, and work that fails gives its place back', async () => {
  const { turns, begun, enter, end } = line(2)
  await expect(turns.run('x', () => Promise.reject(new Error('broken')))).rejects.toThrow('broken')
  for (const name of ['a1', 'a2', 'a3']) enter(name)
  await new Promise(setImmediate)
  expect(begun).toEqual(['a1', 'a2'])
  await end()
  expect(begun).toEqual(['a1', 'a2', 'a3'])
})

test('one tenant fills the line up to a limit, and another still gets in', () => {
  const { turns, enter } = line(1)
  for (let n = 0; turns.mayWait('a', []); n++) {
    enter(`a${n}`)
    expect(n).toBeLessThan(50)
  }
  expect(turns.mayWait('b', [])).toBe(true)
  expect(turns.mayWait('b', ['b']), 'one beyond the limit is enough').toBe(false)
  const others = Array.from({ length: 100 }, (_, n) => `tenant ${n}`)
  expect(turns.mayWait('b', others), 'the line has an end for all').toBe(false)
})

test('what was turned away comes back the later the longer the line, within half a minute', () => {
  const { turns } = line(2)
  const waits = [0, 10, 100, 1000].map(ahead => turns.returnMs(ahead))
  expect(waits).toEqual([...waits].sort((a, b) => a - b))
  expect(waits[0]).toBeGreaterThan(0)
  expect(waits[3]).toBe(30_000)
})
