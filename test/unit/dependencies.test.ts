// What an installation of the package brings with it.
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { expect, test } from 'vitest'
import { z } from 'zod'

const lock = z
  .object({
    packages: z.record(
      z.string(),
      z.object({
        dev: z.boolean().optional(),
        resolved: z.string().optional(),
        integrity: z.string().optional(),
        hasInstallScript: z.boolean().optional(),
      }),
    ),
  })
  .parse(JSON.parse(readFileSync(path.join(import.meta.dirname, '..', '..', 'package-lock.json'), 'utf8')))
const packages = Object.entries(lock.packages).filter(([name]) => name !== '')

test('nothing that production needs runs a script when it is installed', () => {
  const production = packages.filter(([, entry]) => entry.dev !== true)
  expect(production.length).toBeGreaterThan(20)
  expect(production.filter(([, entry]) => entry.hasInstallScript === true)).toEqual([])
})

test('the lock file names no registry of its own, and pins the content of every package', () => {
  const odd = packages.filter(([, entry]) => entry.resolved !== undefined || entry.integrity === undefined)
  expect(odd).toEqual([])
})
