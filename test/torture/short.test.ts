// The torture in short: the same run, half a minute of it.
import { expect, test } from 'vitest'
import { repository, runTorture } from './run-torture.ts'

test('everything crashes for half a minute, and every row is what was last written', async () => {
  const { code, report, stderr } = await runTorture(repository, [
    '--minutes',
    '0.5',
    '--seed',
    '20',
    '--daemons',
    '2',
  ])
  expect(report, stderr).toMatchObject({
    seed: 20,
    mismatched: 0,
    lost: 0,
    leaked_objects: 0,
    cross_tenant: 0,
    stuck_jobs: 0,
    refused_writes: 0,
    crashes: 0,
    findings: [],
  })
  expect(code).toBe(0)
  // It did happen.
  for (const count of ['operations', 'reads', 'kills', 'faults', 'rows_checked', 'artifacts'] as const)
    expect([count, report[count]]).toEqual([count, expect.toSatisfy((n: number) => n > 0)])
}, 240_000)
