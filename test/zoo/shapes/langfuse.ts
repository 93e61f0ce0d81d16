// Langfuse 2: text ids, input and output of any JSON in two columns, a project named by a text.
import { expect } from 'vitest'
import { value } from '../../support/sql.ts'
import type { Application, Shape } from '../shape.ts'
import { cuid, prose, timeOf } from '../text.ts'

const projects = ['cm4x9k2p80001v8', 'cm4x9k2p80002v8']

const inputOf = (seed: string, bytes: number) =>
  JSON.stringify([
    { role: 'system', content: 'You are helpful.' },
    { role: 'user', content: prose(`${seed} in`, bytes) },
  ])
/** An output may be an object, an array, a text or a number. */
const outputOf = (seed: string, bytes: number, n: number) =>
  JSON.stringify(
    [
      { role: 'assistant', content: prose(`${seed} out`, bytes) },
      prose(`${seed} out`, bytes),
      [prose(`${seed} out`, bytes)],
    ][n % 3],
  )

async function ingest(
  app: Application,
  project: number,
  name: string,
  bytes: number,
  n: number,
): Promise<void> {
  await app.query(
    `insert into traces (id, timestamp, name, project_id, input, output) values ($1, $2, $3, $4, $5, $6)
     on conflict (id) do update set name = excluded.name, input = coalesce(excluded.input, traces.input), output = coalesce(excluded.output, traces.output)`,
    [
      cuid(name),
      timeOf(n),
      name,
      projects[project],
      inputOf(name, bytes),
      n % 4 === 3 ? null : outputOf(name, bytes, n),
    ],
  )
  await app.query(
    `insert into observations (id, trace_id, project_id, type, start_time, input, output, created_at)
     values ($1, $2, $3, 'GENERATION', $4, $5, $6, $4)
     on conflict (id) do update set input = coalesce(excluded.input, observations.input), output = coalesce(excluded.output, observations.output)`,
    [
      cuid(`${name} generation`),
      cuid(name),
      projects[project],
      timeOf(n),
      inputOf(`${name} generation`, bytes),
      outputOf(`${name} generation`, bytes, n),
    ],
  )
}

const sizes = [5000, 10_000, 26_000, 9000]

export const langfuse: Shape = {
  name: 'Langfuse 2',
  tables: `
    create table projects (id text primary key, name text not null);
    create table traces (
      id text primary key, timestamp timestamp(3) not null, name text, metadata jsonb,
      project_id text not null references projects (id) on update cascade on delete cascade, input jsonb, output jsonb);
    create table observations (
      id text primary key, trace_id text, project_id text not null references projects (id) on update cascade on delete cascade,
      type text not null, start_time timestamp(3) not null, end_time timestamp(3), metadata jsonb, input jsonb, output jsonb,
      created_at timestamp(3) not null, unique (id, project_id))`,
  tenants: { traces: 'm.project_id', observations: 'm.project_id' },
  fill: async app => {
    for (const [i, project] of projects.entries()) {
      await app.query('insert into projects values ($1, $2)', [project, `Project ${i}`])
      for (let n = 0; n < 8; n++) await ingest(app, i, `old ${i} ${n}`, sizes[n % 4] ?? 0, n)
    }
  },
  writes: {
    'traces come in': async (app, round) => {
      for (const project of [0, 1])
        for (let n = 0; n < 6; n++)
          await ingest(app, project, `${round} ${project} ${n}`, sizes[n % 4] ?? 0, n)
    },
    'events of the same trace come in again: an upsert': async (app, round) => {
      for (const n of [1, 2, 3]) await ingest(app, 0, `old 0 ${n}`, 14_000 + round, n + round)
      await ingest(app, 1, `${round} 1 1`, 250, 0)
    },
    'a generation ends': async (app, round) => {
      await app.query(`update observations set end_time = $2, output = $3 where id = $1`, [
        cuid(`${round} 1 0 generation`),
        timeOf(50),
        outputOf(`ended ${round}`, 33_000, 0),
      ])
      await app.query(`update observations set end_time = $2 where id = $1`, [
        cuid('old 1 2 generation'),
        timeOf(50 + round),
      ])
    },
    'a trace is made empty, another one deleted': async (app, round) => {
      await app.query('update traces set input = null, output = $2 where id = $1', [
        cuid(`old 1 ${round}`),
        '"redacted"',
      ])
      await app.query('delete from observations where trace_id = $1', [cuid(`${round} 0 2`)])
      await app.query('delete from traces where id = $1', [cuid(`${round} 0 2`)])
    },
  },
  reads: {
    'the table of traces': `select t.id, t.name, count(o.id)::int as observations from traces t left join observations o on o.trace_id = t.id group by t.id, t.name order by t.id`,
    'traces without an output': `select id from traces where output is null order by id`,
  },
  attack: {
    name: 'a project gets another id: its rows are not read as that of the new one, and are again when it is undone',
    run: async (zoo, { admin }) => {
      const rename = (from: string | undefined, to: string | undefined) =>
        zoo.write(app =>
          app.query('update projects set id = $2 where id = $1', [from, to]).then(() => undefined),
        )
      const id = await value<string>(
        admin,
        `select t.id from traces t where t.project_id = $1 and t.input ? 'artifact_ref' order by id limit 1`,
        [projects[0]],
      )
      const written = await zoo.twin.read('traces', 'input', id)
      // Both tables refer to the projects, so that one project is one tenant.
      expect(await value(admin, 'select count(distinct tenant_id)::int from public.artifact_refs')).toBe(
        projects.length,
      )
      expect(await zoo.app.read('traces', 'input', id)).toBe(written)
      await rename(projects[0], 'renamed')
      await zoo.settled()
      // What is heavy and new goes under the new name; what left before is the old one's.
      await zoo.write(app =>
        app
          .query('update traces set output = $2 where id = $1', [
            cuid('old 0 0'),
            outputOf('renamed', 15_000, 0),
          ])
          .then(() => undefined),
      )
      await zoo.settled()
      expect(await zoo.app.read('traces', 'output', cuid('old 0 0'))).toBe(
        await zoo.twin.read('traces', 'output', cuid('old 0 0')),
      )
      expect(await zoo.app.read('traces', 'input', id).catch((error: Error) => error.message)).not.toBe(
        written,
      )
      await zoo.write(app =>
        app.query('delete from traces where id = $1', [cuid('old 0 0')]).then(() => undefined),
      )
      await rename('renamed', projects[0])
    },
  },
}
