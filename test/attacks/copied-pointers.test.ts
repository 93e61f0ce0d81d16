// Applications copy whole rows: into an audit log, an outbox, an archive. The pointers in such a copy keep their artifacts
// after the row is deleted that they came from.
import { randomUUID } from 'node:crypto'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import type { Daemon } from '../../src/daemon.ts'
import { drained, startDaemon, useFreshEnvironment } from '../support/environment.ts'
import { value } from '../support/sql.ts'
import { releasedTwice } from '../support/sweep.ts'
import { heavyValue, insertValue, newValueTable, rawValue, type ValueType } from '../support/value-tables.ts'

const environment = useFreshEnvironment()
let daemon: Daemon | null = null
beforeEach(async () => {
  await environment.admin.query(`select lighter.set_defaults('0', '0')`)
  daemon = await startDaemon(environment, { env: { STREAM_THRESHOLD_BYTES: '1000000' } })
})
afterEach(async () => {
  await daemon?.stop()
  daemon = null
})

const copies: [string, string, string][] = [
  ['a document', 'document', 'to_jsonb(t)'],
  [
    'a document that leaves its row',
    'document',
    `jsonb_build_object('old', to_jsonb(t), 'more', repeat('a b ', 5000))`,
  ],
  [
    'a document that is streamed',
    'document',
    `jsonb_build_object('old', to_jsonb(t), 'more', repeat('a b ', 500000))`,
  ],
  ['a text', 'stub', `'log: ' || to_jsonb(t)::text`],
  ['a text that leaves its row', 'stub', `to_jsonb(t)::text || repeat('a b ', 5000)`],
  ['a text that is streamed', 'stub', `to_jsonb(t)::text || repeat('a b ', 500000)`],
]

describe.each<[ValueType, 'stub' | 'whole']>([
  ['text', 'stub'],
  ['json', 'stub'],
  ['text', 'whole'],
])('a row with a column of type %s in mode %s, copied into', (type, mode) => {
  test.each(copies)('%s', async (_, copyMode, copySql) => {
    const { admin } = environment
    const table = await newValueTable(environment, type, mode)
    const id = await insertValue(environment, table, heavyValue(type), randomUUID())
    await drained(environment)
    const { pointer } = await rawValue(environment, table, id)
    await admin.query(`
      create table public.log (id bigint primary key, tenant_id uuid, entry ${copyMode === 'document' ? 'jsonb' : 'text'});
      select lighter.attach('public.log', 'entry', mode => '${copyMode}');
      insert into public.log select 1, tenant_id, ${copySql} from public.${table.name} t`)
    await drained(environment)
    await admin.query(`delete from public.${table.name}`)
    await releasedTwice(environment)
    expect(
      await value<boolean>(admin, 'select deleted_at is not null from artifact_refs where id = $1', [
        pointer,
      ]),
    ).toBe(false)
  })
})
