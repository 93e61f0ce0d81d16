// Rows of artifact_refs that the application deleted: their bytes leave the bucket, after the grace period.
import { randomUUID } from 'node:crypto'
import { expect, test } from 'vitest'
import { attach, createTable, hydratedByCli, lighterOk, settled } from '../support/black-box.ts'
import { useDaemon, useEnvironment } from '../support/environment.ts'
import { age, bucketKeys, runNow } from '../support/sweep.ts'

const environment = await useEnvironment()
await useDaemon(environment)
await createTable(environment, 'notes', '(id bigint primary key, tenant_id uuid not null, metadata jsonb)')
await attach(environment, 'notes')

const note = (n: number) => `{"tool_interactions": [{"n": ${n}, "text": "${String(n).repeat(2000)}"}]}`

let ids = 0
/** A tenant with so many rows, offloaded into one pack. */
async function tenantWithRows(count: number): Promise<{ tenant: string; first: number }> {
  const tenant = randomUUID()
  const first = ids + 1
  ids += count
  await environment.app.query(
    `insert into notes select $2::int + n - 1, $1, d::jsonb from unnest($3::text[]) with ordinality as x(d, n)`,
    [tenant, first, Array.from({ length: count }, (_, n) => note(first + n))],
  )
  await settled(environment)
  expect(await keysOf(tenant)).not.toHaveLength(0)
  return { tenant, first }
}

const keysOf = async (tenant: string) => (await bucketKeys(environment)).filter(key => key.includes(tenant))

async function sweep(): Promise<void> {
  await age(environment, '2 hours')
  for (const name of ['retention', 'compaction', 'orphans'] as const) await runNow(environment, name)
}

async function pastGrace(): Promise<void> {
  for (let n = 0; n < 6; n++) {
    await age(environment, '8 days')
    for (const name of ['retention', 'compaction', 'orphans'] as const) await runNow(environment, name)
  }
}

const forget = (tenant: string, where = 'true') =>
  environment.admin.query(`delete from public.artifact_refs where tenant_id = $1 and ${where}`, [tenant])

test('a tenant that the application deleted leaves nothing in the bucket after the grace period', async () => {
  const { tenant } = await tenantWithRows(5)
  const other = await tenantWithRows(1)
  await forget(tenant)
  await sweep()
  // A backup of the database from before may still be restored.
  expect(await keysOf(tenant)).not.toHaveLength(0)
  await pastGrace()
  expect(await keysOf(tenant)).toEqual([])
  expect(await hydratedByCli(environment, 'notes', String(other.first))).toBe(note(other.first))
})

test('artifacts deleted out of a pack leave the bucket, and the others of the pack stay', async () => {
  const { tenant, first } = await tenantWithRows(6)
  const before = await keysOf(tenant)
  await forget(tenant, `row_id <> '${first}'`)
  await pastGrace()
  const after = await keysOf(tenant)
  expect(after.filter(key => before.includes(key))).toEqual([])
  expect(await hydratedByCli(environment, 'notes', String(first))).toBe(note(first))
})

test('rows that come back within the grace period find their payloads, also after it', {
  timeout: 240_000,
}, async () => {
  const { tenant, first } = await tenantWithRows(3)
  await environment.admin.query(
    `create table kept as select * from lighter.frames where tenant_id = '${tenant}'`,
  )
  await forget(tenant)
  await sweep()
  await environment.admin.query(
    'insert into lighter.frames select * from kept on conflict (tenant_id, id) do update set voids = excluded.voids',
  )
  await pastGrace()
  expect(await hydratedByCli(environment, 'notes', String(first))).toBe(note(first))
  // And if they are deleted again, they go for good.
  await forget(tenant)
  await pastGrace()
  expect(await keysOf(tenant)).toEqual([])
})

test('erase counts and takes objects whose rows are gone', async () => {
  const { tenant } = await tenantWithRows(3)
  const objects = (await keysOf(tenant)).length
  await forget(tenant)
  const dry = JSON.parse(await lighterOk(environment, ['erase', '--tenant', tenant, '--dry-run', '--json']))
  expect(dry.would_erase.objects).toBe(objects)
  const done = JSON.parse(await lighterOk(environment, ['erase', '--tenant', tenant, '--yes', '--json']))
  expect(done.proof.complete).toBe(true)
  expect(await keysOf(tenant)).toEqual([])
})

test('artifacts whose tables were truncated leave an empty bucket', async () => {
  const { tenant } = await tenantWithRows(2)
  await environment.admin.query('truncate lighter.frames, lighter.loose_artifacts cascade')
  await pastGrace()
  expect(await keysOf(tenant)).toEqual([])
  expect(await bucketKeys(environment)).toEqual([])
})
