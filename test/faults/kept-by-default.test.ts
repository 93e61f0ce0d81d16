// Nothing expires that nobody wanted to expire.
import { expect, test } from 'vitest'
import { attach, createTable, hydratedByCli, lighter, lighterOk, settled } from '../support/black-box.ts'
import { startDaemon, useEnvironment } from '../support/environment.ts'
import { age, runNow } from '../support/sweep.ts'

const environment = await useEnvironment()
const document = `{"tool_interactions": [{"text": "${'x'.repeat(2000)}"}]}`

test('payloads are kept for ever until a policy is set, and 90 days are one command away', async () => {
  await createTable(environment, 'notes', '(id bigint primary key, tenant_id uuid not null, metadata jsonb)')
  await attach(environment, 'notes')
  await environment.app.query('insert into notes values (1, gen_random_uuid(), $1)', [document])
  const daemon = await startDaemon(environment)
  await settled(environment)
  await daemon.stop()
  for (let year = 0; year < 3; year++) {
    await age(environment, '365 days')
    await runNow(environment, 'retention')
  }
  expect(await hydratedByCli(environment, 'notes', '1')).toBe(document)

  const set = await lighterOk(environment, ['retention', 'set', '--plan', 'standard', '--days', '90'])
  expect(set).toContain('set: standard plan, 90 days')
  expect(set).toContain('lets 1 artifact(s) expire')
  expect(await lighterOk(environment, ['retention', 'list'])).toMatch(/standard +any +any +90 days/)
  await runNow(environment, 'retention')
  const { code } = await lighter(environment, ['hydrate', '1', '--table', 'notes'])
  expect(code).toBe(1)
  const { rows } = await environment.admin.query('select deleted_reason from public.artifact_refs')
  expect(rows).toEqual([{ deleted_reason: 'expired: standard plan, 90 days' }])
})

test('a policy is set over an older one of the same scope, and removed again', async () => {
  const tenant = '11111111-1111-4111-8111-111111111111'
  const scope = ['--tenant', tenant, '--kind', 'agent_trace']
  await lighterOk(environment, ['retention', 'set', ...scope, '--days', '30'])
  await lighterOk(environment, ['retention', 'set', ...scope, '--forever'])
  expect(await lighterOk(environment, ['retention', 'unset', ...scope])).toContain(
    `removed: tenant ${tenant}, kind agent_trace, kept for ever`,
  )
  expect(await lighterOk(environment, ['retention', 'unset', ...scope])).toContain('there was no such policy')
  for (const wrong of [
    [],
    ['--days', '0'],
    ['--days', '3', '--forever'],
    ['--plan', 'gold', '--days', '3'],
  ]) {
    expect((await lighter(environment, ['retention', 'set', ...wrong])).code).toBe(1)
  }
})
