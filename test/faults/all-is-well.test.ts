// Doctor never ends with "all is well" beside something that is not, and names it.
import { randomUUID } from 'node:crypto'
import { beforeEach, expect, test } from 'vitest'
import { attach, createTable, lighter, settled } from '../support/black-box.ts'
import { startDaemon, useFreshEnvironment } from '../support/environment.ts'

const environment = useFreshEnvironment()
const tenant = randomUUID()
const document = JSON.stringify({ tool_interactions: [1], fill: 'x'.repeat(9000) })

const sql = (statements: string) => environment.admin.query(statements)

/** Row 1 is offloaded. */
beforeEach(async () => {
  await createTable(environment, 'notes', '(id bigint primary key, tenant_id uuid not null, metadata jsonb)')
  await attach(environment, 'notes')
  const daemon = await startDaemon(environment)
  await environment.admin.query('insert into notes values (1, $1, $2)', [tenant, document])
  await settled(environment)
  await daemon.stop()
})

/** What doctor prints; it ends with its sum. */
async function doctor(): Promise<{ lines: string[]; last: string | undefined }> {
  const { stdout } = await lighter(environment, ['doctor'])
  const lines = stdout.trimEnd().split('\n')
  return { lines, last: lines.at(-1) }
}

test('a dead letter', async () => {
  await sql(`insert into notes values (2, '${tenant}', '${document}');
             insert into lighter.failed_jobs (source_id, row_id, attempts, enqueued_at, last_error)
               select source_id, row_id, 8, enqueued_at, 'made for this' from lighter.inbox;
             delete from lighter.inbox`)
  const { lines, last } = await doctor()
  expect(lines).toContainEqual(expect.stringMatching(/^warn {2}queue: .*1 dead letters/))
  expect(last).toMatch(/^1 warning\(s\)/)
})

test('a source that is paused', async () => {
  await sql('update lighter.sources set paused = true')
  const { lines, last } = await doctor()
  expect(lines).toContainEqual(expect.stringMatching(/^warn {2}source notes\.metadata: paused/))
  expect(last).toMatch(/warning\(s\)/)
})

test('a source that is left out since its table is gone', async () => {
  await sql('drop table notes')
  const { lines, last } = await doctor()
  expect(lines).toContainEqual(expect.stringMatching(/^(FAIL|warn) {2}out of sight: .*notes/))
  expect(last).toMatch(/failed|warning/)
})

test('a queue that nobody works on', async () => {
  await sql(`insert into notes values (2, '${tenant}', '${document}');
             update lighter.inbox set enqueued_at = now() - interval '90 s'`)
  const { lines, last } = await doctor()
  expect(lines).toContainEqual(expect.stringMatching(/^warn {2}queue: 1 queued, oldest 9\d s.*does not move/))
  expect(last).toMatch(/^1 warning\(s\)/)
})

test.each([
  ['in an array', `jsonb_build_array(1, jsonb_build_object('copy', metadata))`],
  ['in an object', `jsonb_build_object('copy', metadata)`],
  ['ten levels deep', `(repeat('[{"a": ', 5) || metadata::text || repeat('}]', 5))::jsonb`],
  ['of the field in an element of its own', `jsonb_build_array(metadata - 'artifact_metadata_ref')`],
])('a pointer that nothing follows: %s', async (_, expression) => {
  await sql(`insert into notes select 2, tenant_id, ${expression} from notes where id = 1`)
  const { lines, last } = await doctor()
  expect(lines).toContainEqual(
    expect.stringMatching(
      /^warn {2}pointers public\.notes\.metadata: .*nothing follows them, in all rows: 2$/,
    ),
  )
  expect(last).toMatch(/^1 warning\(s\)/)
})

test('what only looks like a pointer, and a pointer beside its field, are nothing to warn of', async () => {
  await sql(`insert into notes values (2, '${tenant}', '{"a": [{"artifact_metadata_ref": "${randomUUID()}"}]}');
             insert into notes select 3, '${randomUUID()}', jsonb_build_array(metadata::text) from notes where id = 1;
             insert into notes select 4, tenant_id, metadata from notes where id = 1`)
  const { lines } = await doctor()
  expect(lines).toContainEqual(expect.stringMatching(/^ok {4}pointers public\.notes\.metadata: /))
})
