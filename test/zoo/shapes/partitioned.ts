// Calls of models in a table that is partitioned by month, so that its key has the time in it.
import { expect } from 'vitest'
import { column } from '../../support/sql.ts'
import type { Application, Shape } from '../shape.ts'
import { bytesOf, prose, uuid } from '../text.ts'

const tenants = ['north', 'south'].map(uuid)
const october = '2026-10-15T12:00:00Z'
const november = '2026-11-15T12:00:00Z'
const december = '2026-12-15T12:00:00Z'

const payloadOf = (seed: string, bytes: number) =>
  JSON.stringify({ model: 'gpt-5', resp: prose(seed, bytes), ok: true })

const call = (app: Application, name: string, at: string, bytes: number) =>
  app.query('insert into llm_calls (id, created_at, tenant_id, payload, audio) values ($1, $2, $3, $4, $5)', [
    uuid(name),
    at,
    tenants[name.length % 2],
    payloadOf(name, bytes),
    bytesOf(name, bytes),
  ])

const fields = (name: string, at: string, bytes: number) =>
  [uuid(name), at, tenants[name.length % 2], payloadOf(name, bytes).replaceAll('\\', '\\\\')].join('\t')

export const partitioned: Shape = {
  name: 'Partitions by time',
  tables: `
    create table llm_calls (
      id uuid not null default gen_random_uuid(), created_at timestamptz not null, tenant_id uuid not null, payload jsonb not null,
      audio bytea, primary key (id, created_at)) partition by range (created_at);
    create table llm_calls_2026_10 partition of llm_calls for values from ('2026-10-01 00:00Z') to ('2026-11-01 00:00Z');
    create table llm_calls_2026_11 partition of llm_calls for values from ('2026-11-01 00:00Z') to ('2026-12-01 00:00Z');
    create table llm_calls_2026_12 partition of llm_calls for values from ('2026-12-01 00:00Z') to ('2027-01-01 00:00Z');
    create table llm_calls_later partition of llm_calls default`,
  tenants: { llm_calls: 'm.tenant_id' },
  fill: async app => {
    for (const [i, at] of [october, november, december].entries())
      for (let n = 0; n < 6; n++)
        await call(app, `old ${'x'.repeat(n)} ${i}`, at, n % 3 === 0 ? 5000 : 8500 + 4000 * n)
  },
  writes: {
    'calls are inserted': async (app, round) => {
      for (const at of [november, december])
        for (let n = 0; n < 4; n++)
          await call(app, `${round} ${at} ${'y'.repeat(n)}`, at, n % 2 === 0 ? 200 : 13_000)
    },
    'calls are copied in': (app, round) =>
      app.copy(
        'copy llm_calls (id, created_at, tenant_id, payload) from stdin',
        Array.from({ length: 9 }, (_, n) =>
          fields(
            `copied ${round} ${'z'.repeat(n)}`,
            [october, november, december][n % 3] ?? '',
            n % 4 === 0 ? 120 : 10_000,
          ),
        ),
      ),
    'calls move to another partition, as they are and with another payload': async (app, round) => {
      await app.query(`update llm_calls set created_at = created_at + interval '1 month' where id = $1`, [
        uuid(`old xx ${round - 1}`),
      ])
      await app.query('update llm_calls set created_at = $2, payload = $3 where id = $1', [
        uuid(`old x ${round - 1}`),
        december,
        payloadOf(`moved ${round}`, 17_000),
      ])
      await app.query(
        'update llm_calls set created_at = $2, payload = payload || $3, audio = $4 where id = $1',
        [
          uuid(`old xxxx ${round - 1}`),
          '2026-12-16T12:00:00Z',
          '{"moved": true}',
          round === 1 ? bytesOf('moved', 15_000) : bytesOf('moved', 10),
        ],
      )
    },
    'the sound is cut, and recorded again': async (app, round) => {
      await app.query('update llm_calls set audio = $2 where id = $1', [
        uuid('old xxxxx 0'),
        bytesOf(`again ${round}`, round === 1 ? 20 : 12_000),
      ])
    },
    'a payload is written again, and a call deleted': async (app, round) => {
      await app.query('update llm_calls set payload = $2 where id = $1', [
        uuid('old xxxxx 1'),
        payloadOf(`again ${round}`, 21_000),
      ])
      await app.query('delete from llm_calls where id = $1', [uuid(`copied ${round} z`)])
    },
    'calls go to the default partition': async (app, round) => {
      const at = `2027-0${round}-15T12:00:00Z`
      await call(app, `${round} next`, at, 12_000)
      await call(app, `${round} next light`, at, 100)
    },
  },
  reads: {
    'calls a month, those that went well': `select date_trunc('month', created_at, 'UTC') as month, count(*)::int from llm_calls where (payload ->> 'ok')::boolean group by 1 order by 1`,
  },
  attack: {
    name: 'a partition is detached with offloaded rows, and attached again',
    run: async (zoo, { admin }) => {
      const both = async (sql: string) => {
        await admin.query(sql.replaceAll('$', 'public.'))
        await admin.query(sql.replaceAll('$', 'twin.'))
      }
      const pointers = `select count(*)::int from public.llm_calls_2026_10 where payload ? 'artifact_metadata_ref'`
      expect((await column<number>(admin, pointers))[0]).toBeGreaterThan(2)
      await both('alter table $llm_calls detach partition $llm_calls_2026_10')
      await zoo.write(app => call(app, 'while it is away', november, 14_000).then(() => undefined))
      await zoo.settled()
      // Nothing is lost with it, and it is said to be missing.
      expect(await column(admin, `select distinct part || ' ' || name from lighter.missing_parts`)).toEqual([
        'partition public.llm_calls_2026_10',
      ])
      await both(
        `alter table $llm_calls attach partition $llm_calls_2026_10 for values from ('2026-10-01 00:00Z') to ('2026-11-01 00:00Z')`,
      )
      expect(await column(admin, 'select part from lighter.missing_parts')).toEqual([])
    },
  },
}
