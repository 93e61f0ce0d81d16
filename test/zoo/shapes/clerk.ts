// Prisma with Clerk: text ids, organisations named by a text, a document with tool calls that is added to in place.
import { expect } from 'vitest'
import { column } from '../../support/sql.ts'
import type { Application, Shape } from '../shape.ts'
import { cuid, prose, timeOf } from '../text.ts'

const organisations = ['org_2aBcDeFgHiJk', 'org_3xYz']

const metadataOf = (seed: string, calls: number, bytes: number) => ({
  model: 'gpt-5',
  usage: { inputTokens: 812, outputTokens: 95 },
  ...(calls > 0
    ? {
        toolCalls: Array.from({ length: calls }, (_, n) => ({
          name: 'search',
          args: { n },
          out: prose(`${seed} ${n}`, bytes),
        })),
      }
    : { notes: prose(`${seed} notes`, 5000) }),
})

const upsert = (
  app: Application,
  name: string,
  organisation: string,
  calls: number,
  bytes: number,
  more = {},
) =>
  app.query(
    `insert into "Message" (id, "orgId", "threadId", role, metadata, "createdAt") values ($1, $2, $3, 'assistant', $4, $5)
     on conflict (id) do update set metadata = excluded.metadata, role = excluded.role`,
    [cuid(name), organisation, cuid('thread'), { ...metadataOf(name, calls, bytes), ...more }, timeOf(1)],
  )

export const clerk: Shape = {
  name: 'Prisma with Clerk',
  tables: `
    create table "Message" (
      id text primary key, "orgId" text not null, "threadId" text not null, role text not null, metadata jsonb,
      "createdAt" timestamp(3) not null);
    alter table "Message" enable row level security;
    create policy of_an_organisation on "Message" using ("orgId" is not null)`,
  tenants: { Message: 'm."orgId"' },
  fill: async app => {
    for (const [i, organisation] of organisations.entries())
      for (let n = 0; n < 8; n++) await upsert(app, `old ${i} ${n}`, organisation, n % 4, 300 * n * n)
  },
  writes: {
    'messages are upserted': async (app, round) => {
      for (const [i, organisation] of organisations.entries())
        for (let n = 0; n < 5; n++) await upsert(app, `${round} ${i} ${n}`, organisation, n % 3, 2000 * n)
      await upsert(app, 'old 0 1', 'org_2aBcDeFgHiJk', 4, 4000 + round)
      await upsert(app, 'old 1 3', 'org_3xYz', 0, 0)
    },
    'feedback is added in place': async (app, round) => {
      await app.query(`update "Message" set metadata = metadata || $2 where id = any ($1)`, [
        [cuid('old 0 5'), cuid('old 1 0'), cuid(`${round} 0 2`)],
        { feedback: { rating: round, by: 'user "x"' } },
      ])
      await app.query(`update "Message" set metadata = jsonb_set(metadata, '{seen}', $2) where id = $1`, [
        cuid('old 0 2'),
        'true',
      ])
    },
    'a trace is added, heavy itself': (app, round) =>
      app
        .query(`update "Message" set metadata = metadata || $2 where id = any ($1)`, [
          [cuid('old 0 7'), cuid(`${round} 1 1`), cuid('old 1 4')],
          { trace: prose(`trace ${round}`, 10_000) },
        ])
        .then(() => undefined),
    'tool calls are written anew beside the rest': (app, round) =>
      app
        .query(`update "Message" set metadata = metadata || $2 where id = any ($1)`, [
          [cuid('old 0 6'), cuid(`${round} 1 4`)],
          metadataOf(`anew ${round}`, 2, 1500),
        ])
        .then(() => undefined),
    'messages are deleted': (app, round) =>
      app
        .query('delete from "Message" where id = any ($1)', [
          [cuid(`${round} 0 1`), cuid(`old 1 ${5 + round}`)],
        ])
        .then(() => undefined),
  },
  reads: {
    'messages by model': `select metadata ->> 'model' as model, metadata -> 'usage' as usage, count(*)::int from "Message" group by 1, 2 order by 1`,
    'messages with feedback of an organisation': `select id, metadata -> 'feedback' as feedback from "Message" where "orgId" = 'org_3xYz' and metadata ? 'feedback' order by id`,
  },
  attack: {
    name: 'names of organisations that differ by case, white space or accents are organisations of their own',
    run: async (zoo, { admin }) => {
      const names = ['acme', 'ACME', 'acme ', ' acme', 'acm\u00e9', 'acme\u0301', 'acme\u200b', '']
      await zoo.write(async app => {
        for (const name of names) await upsert(app, `of "${name}"`, name, 2, 6000)
      })
      await zoo.settled()
      const tenants = await column<string>(
        admin,
        'select distinct tenant_id::text from public.artifact_refs where row_id = any ($1)',
        [names.map(name => cuid(`of "${name}"`))],
      )
      expect(tenants.length).toBe(names.length)
    },
  },
}
