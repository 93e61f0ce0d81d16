// PUTs of rows that come for ever, against those that `npm run bench -- cost` has counted (docs/performance.md, "Cost").
import { expect, test } from 'vitest'
import { heavyMessages } from '../../bench/support/messages.ts'
import { splitObject } from '../../src/artifacts/raw-json.ts'
import { loadConfig } from '../../src/config.ts'
import { daemonDefaults } from '../../src/estimate/constants.ts'
import type { Leaving } from '../../src/estimate/leaving.ts'
import { departuresOf, steadyPuts } from '../../src/estimate/puts.ts'
import { tenantsOf } from '../../src/estimate/tenants.ts'

const nothing = { heap: 0, toast: 0, moved: [] }

const rows = [...heavyMessages('real', 5000)].map(({ metadata }): Leaving => {
  const field = splitObject(metadata).get('tool_interactions')?.length ?? 0
  return {
    weight: 1,
    page: '',
    tenant: null,
    before: nothing,
    after: nothing,
    fieldText: field,
    restText: field === 0 ? metadata.length : 0,
    stored: 0,
    wasOpened: true,
    isStreamed: false,
  }
})

/** Rows a second, tenants, PUTs of 1,000 artifacts as counted, with 32 KiB for PACK_MIN_BYTES. */
const counted: [number, number, number][] = [
  [1, 5, 1.92],
  [1, 1000, 23.3],
  [1, 10_000, 85.2],
  [100, 5, 1.93],
  [100, 1000, 1.92],
  [100, 10_000, 3.44],
  [10_000, 1000, 1.95],
  [10_000, 10_000, 2.08],
]

test.each(counted)(
  'at %d rows/s of %d tenants a thousand artifacts make %d PUTs, within 20 %%',
  (rate, total, puts) => {
    const tenants = tenantsOf(
      rows.map(row => row.tenant),
      1,
      null,
    )
    const many = { ...tenants, total, shares: [{ share: 1 / total, count: total }] }
    const settings = { ...daemonDefaults, packMinBytes: 32 * 1024 }
    // One row in a thousand of the mix is streamed, by its numbers.
    const { putsPerSecond } = steadyPuts(
      departuresOf(rows, 64 * 1024, 0.11),
      many,
      rate,
      24 * 3_600_000,
      settings,
    )
    const estimated = (putsPerSecond / rate) * 1000 + 0.95
    expect(Math.abs(estimated / puts - 1), `${estimated.toFixed(2)} estimated`).toBeLessThan(0.2)
  },
)

test('the settings that an estimate counts with are the defaults of the daemon', () => {
  const { offload } = loadConfig({
    DATABASE_URL: 'postgresql:///db',
    R2_ACCOUNT_ID: 'a',
    R2_ACCESS_KEY_ID: 'k',
    R2_SECRET_ACCESS_KEY: 's',
    R2_BUCKET: 'b',
  })
  expect(offload).toMatchObject(daemonDefaults)
})
