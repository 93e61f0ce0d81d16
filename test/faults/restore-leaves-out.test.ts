// What a restore does not put back it names, with the reason, and its exit status is 1.
import { randomUUID } from 'node:crypto'
import { expect, test } from 'vitest'
import { attach, createTable, lighter, settled } from '../support/black-box.ts'
import { startDaemon, useFreshEnvironment } from '../support/environment.ts'

const environment = useFreshEnvironment()
const tenant = randomUUID()
const columns = '(id bigint primary key, tenant_id uuid not null, metadata jsonb)'
const note = (n: number) => `{"n": ${n}, "tool_interactions": [1]}`

/** `notes` with the rows 1 and 2, `parts` with row 3 in the partition parts_1, `former` with row 4; all offloaded. */
async function prepare(): Promise<void> {
  for (const table of ['notes', 'parts', 'former']) {
    const partitioned = table === 'parts'
    await createTable(environment, table, columns + (partitioned ? ' partition by range (id)' : ''))
    if (partitioned)
      await environment.admin.query('create table parts_1 partition of parts for values from (1) to (9)')
    await attach(environment, table)
  }
  const daemon = await startDaemon(environment)
  for (const [table, n] of [
    ['notes', 1],
    ['notes', 2],
    ['parts', 3],
    ['former', 4],
  ] as const)
    await environment.admin.query(`insert into ${table} values ($1, $2, $3)`, [n, tenant, note(n)])
  await settled(environment)
  await daemon.stop()
}

test('restore --all says what it did not restore and why, and ends with status 1', {
  timeout: 120_000,
}, async () => {
  await prepare()
  const { rows: offloaded } = await environment.admin.query(
    `select metadata ->> 'tool_interactions_ref' as id from notes where id = 2`,
  )
  await environment.admin.query(`
    alter table parts detach partition parts_1;
    select lighter.detach('former');
    insert into notes select 5, tenant_id, jsonb_build_object('copy', metadata) from notes where id = 1;
    insert into notes select 6, tenant_id, metadata || '[1]' from notes where id = 1;
    update artifact_refs set deleted_at = now(), purged_at = now() where id = '${offloaded[0].id}'`)
  const { code, stdout } = await lighter(environment, ['restore', '--all', '--json'])
  expect(code).toBe(1)
  const { restored, failed, failures, not_restored } = JSON.parse(stdout)
  expect({ restored, failed }).toEqual({ restored: 1, failed: 1 })
  expect(failures).toEqual([
    expect.objectContaining({
      rowId: '2',
      code: expect.stringMatching(/\w/),
      message: expect.stringMatching(/\w/),
    }),
  ])
  expect(not_restored).toEqual(
    expect.arrayContaining([
      { what: expect.stringContaining('parts_1'), reason: expect.any(String), advice: expect.any(String) },
      {
        what: 'former.metadata',
        reason: expect.stringContaining('detached, and 1 payload'),
        advice: expect.stringContaining('lighter attach former'),
      },
      {
        what: expect.stringContaining('public.notes.metadata, 2 row(s): 5, 6'),
        reason: expect.stringContaining('nothing follows'),
        advice: expect.any(String),
      },
    ]),
  )
  expect(not_restored).toHaveLength(3)
  const { rows } = await environment.admin.query('select metadata::text from notes where id = 1')
  expect(rows).toEqual([{ metadata: note(1) }])
  // Said in plain lines too, and of what was asked for only.
  const row = await lighter(environment, ['restore', '--table', 'notes', '--row', '5'])
  expect(row.code).toBe(1)
  expect(row.stdout).toContain('not restored: public.notes.metadata, 1 row(s): 5')
  expect(row.stdout).not.toContain('parts_1')
  const clean = await lighter(environment, ['restore', '--table', 'notes', '--row', '1'])
  expect(clean).toMatchObject({ code: 0, stdout: expect.not.stringContaining('not restored') })
})
