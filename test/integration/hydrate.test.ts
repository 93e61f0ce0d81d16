// Reading back: pointers that lead in circles, fields with odd names, one bad row among good ones.
import { createHash } from 'node:crypto'
import { expect, test } from 'vitest'
import { hydrateMany } from '../../src/artifacts/hydrate.ts'
import { readRows } from '../../src/artifacts/rows.ts'
import { asTenantId } from '../../src/ids.ts'
import { loadSources } from '../../src/source/sources.ts'
import { drained, newConversation, startDaemon, useEnvironment } from '../support/environment.ts'

const environment = await useEnvironment()

/** An artifact stored by hand, as an application may. */
async function store(tenantId: string, artifactId: string, payload: string): Promise<void> {
  const key = `${environment.store.prefix}tenants/${tenantId}/attachment/2026/01/01/${artifactId}.json`
  await environment.store.put(key, Buffer.from(payload), { contentType: 'application/json' })
  await environment.admin.query(
    `insert into artifact_refs (id, tenant_id, kind, r2_key, size_bytes, sha256) values ($1, $2, 'attachment', $3, $4, $5)`,
    [
      artifactId,
      tenantId,
      key,
      Buffer.byteLength(payload),
      createHash('sha256').update(payload).digest('hex'),
    ],
  )
}

test('pointers that lead in a circle are an error of that row only', async () => {
  const { tenantId } = await newConversation(environment)
  const [a, b] = ['01890000-0000-7000-8000-00000000000a', '01890000-0000-7000-8000-00000000000b']
  await store(tenantId, a, `{"artifact_metadata_ref": "${b}"}`)
  await store(tenantId, b, `{"artifact_metadata_ref": "${a}"}`)
  const inputs = [`{"artifact_metadata_ref": "${a}"}`, '{"good": 1e400}'].map(metadata => ({
    tenantId: asTenantId(tenantId),
    metadata,
    field: 'tool_interactions',
  }))
  const results = await hydrateMany({ db: environment.worker, store: environment.store }, inputs)
  expect(results).toEqual([
    { metadata: null, error: expect.objectContaining({ code: 'pointer_cycle' }) },
    { metadata: '{"good": 1e400}', error: null },
  ])
})

test('a chain of more than a thousand pointers is followed to its end', async () => {
  const { tenantId } = await newConversation(environment)
  const id = (n: number) => `01890000-0000-7000-8000-${n.toString(16).padStart(12, '0')}`
  const length = 1100
  for (let n = 0; n < length; n += 50) {
    await Promise.all(
      Array.from({ length: 50 }, (_, i) => n + i).map(k =>
        store(
          tenantId,
          id(1000 + k),
          k === 0 ? '{"end": 1}' : `{"artifact_metadata_ref": "${id(999 + k)}", "k${k}": ${k}}`,
        ),
      ),
    )
  }
  const input = {
    tenantId: asTenantId(tenantId),
    metadata: `{"artifact_metadata_ref": "${id(999 + length)}"}`,
    field: 'tool_interactions',
  }
  const [result] = await hydrateMany({ db: environment.worker, store: environment.store }, [input])
  expect(result?.error).toBeNull()
  expect(Object.keys(JSON.parse(result?.metadata ?? ''))).toHaveLength(length)
  // One read after the other, of whatever store.
}, 300_000)

test.for(['a"b', 'back\\slash', 'é', 'with space', "quote'd", '$1'])(
  'a phase 1 field named %s goes and comes back',
  async field => {
    const table = `odd_${createHash('md5').update(field).digest('hex')}`
    await environment.admin.query(
      `create table ${table} (id bigint generated always as identity primary key, tenant_id uuid, metadata jsonb)`,
    )
    await environment.admin.query('select lighter.attach($1::regclass, phase1_field => $2)', [table, field])
    const { tenantId } = await newConversation(environment)
    const metadata = JSON.stringify({ [field]: ['value'], rest: 1 })
    await environment.admin.query(`insert into ${table} (tenant_id, metadata) values ($1, $2)`, [
      tenantId,
      metadata,
    ])
    const daemon = await startDaemon(environment)
    await drained(environment)
    await daemon.stop()
    const { rows } = await environment.admin.query<{ metadata: string }>(
      `select metadata::text from ${table}`,
    )
    expect(rows[0]?.metadata).not.toContain('value')
    const source = [...(await loadSources(environment.worker)).values()].find(s => s.tableSql.endsWith(table))
    if (source === undefined) throw new Error('not attached')
    const inputs = await readRows(environment.worker, source, ['1'])
    const [result] = await hydrateMany({ db: environment.worker, store: environment.store }, [
      ...inputs.values(),
    ])
    expect(JSON.parse(result?.metadata ?? '')).toEqual(JSON.parse(metadata))
  },
)
