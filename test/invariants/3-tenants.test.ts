// Invariant 3: no read returns another tenant's data, or tells whether another tenant's artifact exists.
import { randomUUID } from 'node:crypto'
import { beforeAll, describe, expect, test } from 'vitest'
import { fetchPayloads } from '../../src/artifacts/fetch.ts'
import { lookupArtifacts } from '../../src/catalogue/lookup.ts'
import { ArtifactError } from '../../src/errors.ts'
import { asArtifactId, asTenantId } from '../../src/ids.ts'
import {
  asJsonbText,
  createSignals,
  drained,
  hydrated,
  insertMessage,
  newConversation,
  rawMetadata,
  useDaemon,
  useEnvironment,
} from '../support/environment.ts'
import { strayArtifacts } from '../support/invariants.ts'

const environment = await useEnvironment()
const signals = createSignals()
await useDaemon(environment, {
  signal: signals.signal,
  env: { OFFLOAD_MAX_ATTEMPTS: '1' }, // what is to be given up is so at once
})
let mine: { tenantId: string; conversationId: string; rowId: string; artifactId: string }
let theirs: typeof mine

beforeAll(async () => {
  const write = async (text: string) => {
    const conversation = await newConversation(environment)
    const rowId = await insertMessage(
      environment,
      conversation.conversationId,
      `{"tool_interactions": ["${text}"]}`,
    )
    await drained(environment)
    const row: { tool_interactions_ref: string } = JSON.parse((await rawMetadata(environment, rowId)) ?? '')
    return { ...conversation, rowId, artifactId: row.tool_interactions_ref }
  }
  mine = await write('mine')
  theirs = await write('theirs')
})

/** The error's words, with the id it was asked for taken out. */
async function refusal(metadata: (id: string) => string, id: string): Promise<string> {
  const rowId = await insertMessage(environment, mine.conversationId, metadata(id))
  await drained(environment)
  const error = await hydrated(environment, rowId).catch(e => e)
  expect(error).toBeInstanceOf(ArtifactError)
  return `${error.code}: ${error.message}`.replaceAll(id, '<id>')
}

describe('a pointer to another tenant’s artifact', () => {
  test.for<[string, (id: string) => string]>([
    ['phase 1', id => `{"tool_interactions_ref": "${id}", "tool_interactions_count": 1}`],
    [
      'phase 2',
      id => `{"artifact_metadata_ref": "${id}", "artifact_metadata_kind": "assistant_message_metadata"}`,
    ],
    ['both', id => `{"artifact_metadata_ref": "${id}", "tool_interactions_ref": "${id}"}`],
  ])('%s is refused in the words used for one that does not exist', async ([, forge]) => {
    const foreign = await refusal(forge, theirs.artifactId)
    expect(foreign).toContain('artifact_not_found')
    expect(foreign).toBe(await refusal(forge, randomUUID()))
  })

  test.for<[string, (id: string) => string]>([
    ['phase 1', id => `{"tool_interactions_ref": "${id}", "fill": "${'~'.repeat(9000)}"}`],
    ['phase 2', id => `{"artifact_metadata_ref": "${id}", "fill": "${'~'.repeat(9000)}"}`],
    ['phase 2, under a field', id => `{"artifact_metadata_ref": "${id}", "tool_interactions": ["own"]}`],
  ])('%s has nothing put on top of it, in the words used for one that does not exist', async ([, forge]) => {
    const letters: string[] = []
    for (const id of [theirs.artifactId, randomUUID()]) {
      const rowId = await insertMessage(environment, mine.conversationId, forge(id))
      await drained(environment)
      // What was written is where it was written.
      expect(await rawMetadata(environment, rowId)).toBe(await asJsonbText(environment, forge(id)))
      const { rows } = await environment.admin.query<{ last_error: string }>(
        'select last_error from lighter.failed_jobs where row_id = $1',
        [rowId],
      )
      letters.push(rows[0]?.last_error ?? '')
    }
    expect(letters[0]).toMatch(/^lost_pointer: /)
    expect(letters[0]).toBe(letters[1])
    await environment.admin.query('delete from lighter.failed_jobs')
  })

  test('beside tool_interactions of the row’s own is not taken for a pointer, nor lost', async () => {
    const metadata = `{"tool_interactions": ["own"], "tool_interactions_ref": "${theirs.artifactId}"}`
    const rowId = await insertMessage(environment, mine.conversationId, metadata)
    await drained(environment)
    expect(JSON.parse((await hydrated(environment, rowId)) ?? '')).toEqual(JSON.parse(metadata))
  })
})

test('a pointer of the same tenant, copied to another row, is followed', async () => {
  const rowId = await insertMessage(
    environment,
    mine.conversationId,
    `{"tool_interactions_ref": "${mine.artifactId}"}`,
  )
  expect(await hydrated(environment, rowId)).toBe('{"tool_interactions": ["mine"]}')
})

test('looking up another tenant’s artifact finds nothing, as for one that does not exist', async () => {
  const ids = [theirs.artifactId, randomUUID()].map(asArtifactId)
  expect(await lookupArtifacts(environment.worker, asTenantId(mine.tenantId), ids)).toEqual(new Map())
})

test('a row of artifact_refs that points under another tenant’s keys is not read', async () => {
  await environment.admin.query(
    `insert into artifact_refs (id, tenant_id, kind, r2_key, content_type, size_bytes, sha256)
     select gen_random_uuid(), $1, kind, r2_key, content_type, size_bytes, sha256 from artifact_refs where id = $2`,
    [mine.tenantId, theirs.artifactId],
  )
  const { rows } = await environment.admin.query<{ id: string }>(
    'select id from artifact_refs where tenant_id = $1 and r2_key like $2',
    [mine.tenantId, `%${theirs.tenantId}%`],
  )
  const id = asArtifactId(rows[0]?.id ?? '')
  const artifacts = await lookupArtifacts(environment.worker, asTenantId(mine.tenantId), [id])
  const payloads = await fetchPayloads(environment.store, [...artifacts.values()])
  expect([...payloads.values()]).toEqual([expect.objectContaining({ code: 'artifact_foreign_key' })])
  await environment.admin.query('delete from artifact_refs where id = $1', [id])
})

test('a pack never mixes tenants or kinds, however rows come in', async () => {
  const tenants = await Promise.all(Array.from({ length: 5 }, () => newConversation(environment)))
  // Everything that is written while the first batch is held ends up in one batch after it.
  const hold = signals.holdAt('after-claim')
  await insertMessage(environment, mine.conversationId, '{"tool_interactions": ["first"]}')
  await hold.reached
  for (let round = 0; round < 10; round++) {
    for (const { conversationId } of tenants) {
      await insertMessage(environment, conversationId, `{"tool_interactions": [${round}]}`)
      await insertMessage(environment, conversationId, `{"trace": "${'~'.repeat(9000)}"}`)
    }
  }
  hold.release()
  await drained(environment)
  const { rows } = await environment.admin.query<{ artifacts: number; tenants: number; kinds: number }>(
    `select count(*)::int as artifacts, count(distinct tenant_id)::int as tenants, count(distinct kind)::int as kinds
       from artifact_refs where byte_offset is not null group by r2_key`,
  )
  expect(rows.length).toBeGreaterThanOrEqual(10)
  for (const row of rows) expect(row).toMatchObject({ tenants: 1, kinds: 1 })
  expect(await strayArtifacts(environment)).toEqual([])
})

test('a row whose tenant can not be found is never uploaded, and says why', async () => {
  await environment.admin.query(`
    create table orphan_notes (id bigint generated always as identity primary key, tenant_id uuid, metadata jsonb);
    select lighter.attach('orphan_notes')`)
  await environment.admin.query(
    `insert into orphan_notes (metadata) values ('{"tool_interactions": ["nobody"]}')`,
  )
  await drained(environment)
  const { rows } = await environment.admin.query<{ last_error: string }>(
    'select last_error from lighter.failed_jobs',
  )
  expect(rows).toEqual([{ last_error: expect.stringContaining('no tenant') }])
  const { rows: after } = await environment.admin.query('select metadata::text from orphan_notes')
  expect(after).toEqual([{ metadata: '{"tool_interactions": ["nobody"]}' }])
  await environment.admin.query(`update orphan_notes set tenant_id = $1`, [mine.tenantId])
  await environment.admin.query('select lighter.retry()')
  await drained(environment)
  const { rows: retried } = await environment.admin.query<{ metadata: string }>(
    'select metadata::text from orphan_notes',
  )
  expect(retried[0]?.metadata).toContain('tool_interactions_ref')
})
