// Settings that are allowed but odd: every command still works with them.
import { expect, test } from 'vitest'
import { attach, createTable, hydratedByCli, lighter, lighterOk, settled } from '../support/black-box.ts'
import { startDaemon, useFreshEnvironment } from '../support/environment.ts'

const environment = useFreshEnvironment()

test('compaction works when the pack size is no multiple of its divisors', async () => {
  const env = { PACK_MAX_ARTIFACTS: '500' }
  await createTable(environment, 'notes', '(id bigint primary key, tenant_id uuid not null, metadata jsonb)')
  await attach(environment, 'notes')
  const document = `{"tool_interactions": [{"text": "${'x'.repeat(2000)}"}]}`
  await environment.app.query(
    'insert into notes select n, gen_random_uuid(), $1 from generate_series(1, 20) n',
    [document],
  )
  const daemon = await startDaemon(environment, { env })
  await settled(environment)
  await daemon.stop()
  expect(await hydratedByCli(environment, 'notes', '7')).toBe(document)
  await lighterOk(environment, ['sweep', 'compaction'], { env })
})

test('a value out of bounds is refused by the name of its setting', async () => {
  const finished = await lighter(environment, ['sweep', 'compaction'], { env: { PACK_MAX_ARTIFACTS: '0' } })
  expect(finished.code).toBe(1)
  expect(finished.stderr).toContain('PACK_MAX_ARTIFACTS')
})
