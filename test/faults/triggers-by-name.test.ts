// Triggers of the application that name its tables without their schema, as most do, and fire on our rewrite.
import { beforeAll, describe, expect, test } from 'vitest'
import { lighterOk } from '../support/black-box.ts'
import { drained, startDaemon, useEnvironment } from '../support/environment.ts'
import { value } from '../support/sql.ts'

const environment = await useEnvironment()
const { admin } = environment

beforeAll(async () => {
  await admin.query(`
    create table public.notes (id bigint primary key, tenant_id uuid default gen_random_uuid(), metadata jsonb, changes int not null default 0);
    create table public.audit (id bigint, what text);
    grant insert on public.audit to public;
    create function public.note_length(text) returns integer language sql immutable as 'select pg_catalog.length($1)';
    create function public.count_changes() returns trigger language plpgsql as
      'begin new.changes := new.changes + note_length(''x''); return new; end';
    create function public.write_audit() returns trigger language plpgsql as
      'begin insert into audit values (new.id, tg_op || '' '' || tg_name); return null; end';
    create trigger counts before update on public.notes for each row execute function public.count_changes();
    create trigger audits after insert or update on public.notes for each row execute function public.write_audit();
    create constraint trigger audits_late after update on public.notes deferrable initially deferred for each row execute function public.write_audit();
    select lighter.attach('public.notes', skip_triggers => false)`)
})

describe('are run by the rewrite as by the application', () => {
  const audited = (what: string) =>
    value<number>(admin, 'select count(*)::int from public.audit where what = $1', [what])

  test('of an offload, and of a restore', async () => {
    await admin.query(
      `insert into public.notes (id, metadata) values (1, '{"tool_interactions": [1]}'), (2, '{"tool_interactions": [2]}')`,
    )
    const daemon = await startDaemon(environment)
    await drained(environment)
    await daemon.stop()
    expect(
      (
        await admin.query(
          `select changes, metadata ? 'tool_interactions_ref' as gone from public.notes order by id`,
        )
      ).rows,
    ).toEqual([
      { changes: 1, gone: true },
      { changes: 1, gone: true },
    ])
    expect(await audited('UPDATE audits')).toBe(2)
    expect(await audited('UPDATE audits_late')).toBe(2)
    await lighterOk(environment, ['restore', '--table', 'notes'])
    expect((await admin.query('select changes, metadata from public.notes order by id')).rows).toEqual([
      { changes: 2, metadata: { tool_interactions: [1] } },
      { changes: 2, metadata: { tool_interactions: [2] } },
    ])
    expect(await audited('UPDATE audits_late')).toBe(4)
  })
})
