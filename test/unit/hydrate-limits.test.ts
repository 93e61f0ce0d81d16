import { execFileSync } from 'node:child_process'
import path from 'node:path'
import { expect, test } from 'vitest'

const limits = path.join(import.meta.dirname, '..', '..', 'src', 'artifacts', 'hydrate-limits.ts')

function keysWith(heapMb: number): { program: number; request: number } {
  const script = `import { requestLimits, widestLimits } from ${JSON.stringify(limits)}
    console.log(JSON.stringify({ program: widestLimits.keys, request: requestLimits(1).keys }))`
  const { NODE_OPTIONS: _, ...env } = process.env
  const args = [`--max-old-space-size=${heapMb}`, '--input-type=module', '--eval', script]
  return JSON.parse(execFileSync(process.execPath, args, { env, encoding: 'utf8' }))
}

test('what a row or a request may hold apart fits into the heap', () => {
  expect(keysWith(64).request).toBeLessThan(400_000)
  expect(keysWith(64).program).toBe(keysWith(64).request)
  expect(keysWith(4096)).toEqual({ program: expect.any(Number), request: 1_000_000 })
  expect(keysWith(4096).program).toBeGreaterThan(4_000_000)
})
