// An application of one company: a bigint key, a document of jsonb, no tenant anywhere.
import { expect } from 'vitest'
import type { Application, Shape } from '../shape.ts'
import { prose, timeOf } from '../text.ts'

const payloadOf = (seed: string, bytes: number) =>
  JSON.stringify({
    model: 'gpt-5',
    input: prose(`${seed} in`, bytes / 2),
    output: prose(`${seed} out`, bytes / 2),
    cost: 0.1,
  })

const insert = (app: Application, kind: string, payload: string) =>
  app.query('insert into events (kind, payload, created_at) values ($1, $2, $3)', [kind, payload, timeOf(3)])

/** An element of COPY's text format. */
const escaped = (text: string) =>
  text.replaceAll('\\', '\\\\').replaceAll('\t', '\\t').replaceAll('\n', '\\n')

/** Of the events of a kind, the first, as the application finds it. */
const first = (kind: string) => `(select min(id) from events where kind = '${kind}')`

export const singleTenant: Shape = {
  name: 'One company',
  tables: `
    create table events (
      id bigint generated always as identity primary key, kind text not null, payload jsonb not null, created_at timestamptz not null,
      revision integer not null default 0);
    -- Counts what the application changes. Nobody else's rewrite may count.
    create function count_revision() returns trigger language plpgsql as 'begin new.revision := old.revision + 1; return new; end';
    create trigger count_revision before update on events for each row execute function count_revision()`,
  tenants: { events: null },
  fill: async app => {
    for (let n = 0; n < 12; n++)
      await insert(app, `old.${n}`, payloadOf(`old ${n}`, [5000, 12_000, 70_000, 9500][n % 4] ?? 0))
    await insert(app, 'list', JSON.stringify([prose('one', 5000), { two: prose('two', 5000) }]))
  },
  writes: {
    'events are inserted': async (app, round) => {
      for (let n = 0; n < 6; n++)
        await insert(app, `new.${round}.${n}`, payloadOf(`${round} ${n}`, n % 2 === 0 ? 300 : 16_000))
    },
    'events are copied in': (app, round) =>
      app.copy(
        'copy events (kind, payload, created_at) from stdin',
        Array.from(
          { length: 8 },
          (_, n) =>
            `copied.${round}.${n}\t${escaped(payloadOf(`copied ${round} ${n}`, n % 2 === 0 ? 150 : 11_000))}\t${timeOf(n)}`,
        ),
      ),
    'elements are added to an array in place': (app, round) =>
      app
        .query(`update events set payload = payload || $1 where id = ${first('list')}`, [
          JSON.stringify([{ round, text: prose(`added ${round}`, 9000) }, round]),
        ])
        .then(() => undefined),
    'an event is saved with all its columns as they were read': async (app, round) => {
      for (const kind of ['old.1', 'old.4']) {
        const [row] = await app.query<{ id: string; kind: string; payload: string; created_at: Date }>(
          `select id, kind, payload::text, created_at from events where kind = $1`,
          [kind],
        )
        await app.query('update events set kind = $2, payload = $3, created_at = $4 where id = $1', [
          row?.id,
          row?.kind,
          row?.payload,
          timeOf(100 + round),
        ])
      }
    },
    'a payload is replaced, made small, and made large': async (app, round) => {
      await app.query(`update events set payload = $1 where id = ${first('old.2')}`, [
        payloadOf(`again ${round}`, 20_000),
      ])
      await app.query(`update events set payload = '{"model": "m"}' where id = ${first('old.3')}`)
      await app.query(`update events set payload = payload || $1 where id = ${first('old.0')}`, [
        JSON.stringify({ log: prose(`log ${round}`, 9000) }),
      ])
    },
    'events are deleted': (app, round) =>
      app
        .query(`delete from events where kind in ('old.${5 + round}', 'copied.${round}.1')`)
        .then(() => undefined),
  },
  reads: {
    'events by model': `select payload ->> 'model' as model, count(*)::int from events where jsonb_typeof(payload) = 'object' group by 1 order by 1`,
  },
  attack: {
    name: 'escapes that look like \\u0000, a name twice, numbers of 400 digits, and deep nesting',
    run: async zoo => {
      const long = prose('odd', 9000).replaceAll(/["\\\n\t]/g, ' ')
      const payloads = [
        `{"model": "\\\\u0000", "text": "\\\\u0000 \\\\\\\\u0000 \\u001f \\u007f \\ud83d\\udea2", "long": "${long}"}`,
        `{"a": 1, "a": {"b": 2, "b": 3}, "long": "${long}"}`,
        `{"big": ${'9'.repeat(400)}, "small": 1e-400, "exact": 0.10, "minus": -0, "long": "${long}"}`,
        `{"deep": ${'[{"x":'.repeat(400)}1${'}]'.repeat(400)}, "long": "${long}"}`,
        `{"": "${long}", " ": null, "\\"": [], "tool_interactions_count": 7}`,
        `{"wrapped": {"artifact_metadata_ref": "00000000-0000-7000-8000-000000000000"}, "long": "${long}"}`,
        `[[], {}, [{}], null, "${long}", 1.000]`,
      ]
      await zoo.write(async app => {
        for (const [i, payload] of payloads.entries()) await insert(app, `odd.${i}`, payload)
      })
      await zoo.settled()
      const left = await zoo.app.query(
        `select from events where kind like 'odd.%' and octet_length(payload::text) < 3000`,
      )
      expect(left.length).toBe(payloads.length)
    },
  },
}
