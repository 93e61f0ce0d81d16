// A partition that was detached with offloaded rows is out of sight, not gone: its artifacts stay, whatever is done to its
// former table, until somebody says that its rows were deleted.
import { describe, expect, test } from 'vitest'
import { lighter } from '../support/black-box.ts'
import { drained, startDaemon, useFreshEnvironment } from '../support/environment.ts'
import { column, value } from '../support/sql.ts'
import { releasedTwice } from '../support/sweep.ts'

const environment = useFreshEnvironment()

describe.each([
  ['document', `'doc'`, `doc ? 'artifact_metadata_ref'`],
  ['stub', `'note'`, `note like '{"artifact_ref%'`],
  ['whole', `'raw', create_pointer_column => true`, 'raw_artifact_id is not null'],
])('a table with a column in mode %s and a partition out of sight', (_, args, isOffloaded) => {
  test.each([
    ['is detached', { restored: false, again: false }],
    ['is restored and detached', { restored: true, again: false }],
    ['is detached and attached again', { restored: false, again: true }],
    ['is restored, detached and attached again', { restored: true, again: true }],
  ])('that %s', async (_, { restored, again }) => {
    const { admin } = environment
    await admin.query(`
      select lighter.set_defaults('0', '0');
      create table calls (id integer not null, at date not null, tenant_id uuid not null, doc jsonb, note text, raw bytea, primary key (id, at))
        partition by range (at);
      create table calls_old partition of calls for values from ('2026-01-01') to ('2026-02-01');
      create table calls_new partition of calls for values from ('2026-02-01') to ('2026-03-01')`)
    const attach = () => admin.query(`select lighter.attach('calls', ${args})`)
    await attach()
    const daemon = await startDaemon(environment)
    await admin.query(`
      insert into calls
      select n, at, gen_random_uuid(), jsonb_build_object('model', 'm', 'text', t), t, convert_to(t, 'UTF8')
        from generate_series(1, 3) n cross join unnest(array['2026-01-15', '2026-02-15']::date[]) at
       cross join lateral (select string_agg(md5(concat(n, at, i)), ' ') as t from generate_series(1, 300) i) x`)
    await drained(environment)
    const offloaded = `select count(*)::int from calls_old where ${isOffloaded}`
    expect(await value(admin, offloaded)).toBe(3)
    await admin.query('alter table calls detach partition calls_old')
    if (restored)
      expect(await lighter(environment, ['restore', '--all'])).toMatchObject({
        code: 1,
        stdout: expect.stringContaining('calls_old'),
      })
    await admin.query(`select lighter.detach('calls', ${args.split(',')[0]})`)
    if (again) {
      await attach()
      expect(await column(admin, `select part || ' ' || name from lighter.missing_parts`)).toEqual([
        'partition public.calls_old',
      ])
    }
    await releasedTwice(environment)
    expect(
      await column(
        admin,
        `select distinct deleted_at is not null from artifact_refs where row_id like '%2026-01-15%'`,
      ),
    ).toEqual([false])

    // It comes back, and so do its rows.
    await admin.query(
      `alter table calls attach partition calls_old for values from ('2026-01-01') to ('2026-02-01')`,
    )
    await attach()
    expect(await lighter(environment, ['restore', '--all'])).toMatchObject({ code: 0 })
    expect(await value(admin, offloaded)).toBe(0)
    expect(
      await value(
        admin,
        `select count(*)::int from calls where octet_length(note) + octet_length(raw) + octet_length(doc::text) > 29000`,
      ),
    ).toBe(6)
    await admin.query(`select lighter.detach('calls', ${args.split(',')[0]})`)
    expect(
      await column(
        admin,
        `select attname::text from pg_attribute where attrelid = 'calls'::regclass and attnum > 6 and not attisdropped`,
      ),
    ).toEqual([])
    await daemon.stop()
  })
})
