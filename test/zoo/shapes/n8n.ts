// n8n: executions by an integer, their data as flattened JSON in a column of type text, no tenant.
import { expect } from 'vitest'
import { createLighterClient } from '../../../src/index.ts'
import { value } from '../../support/sql.ts'
import type { Application, Shape } from '../shape.ts'
import { prose, timeOf, uuid } from '../text.ts'

/** As `flatted` writes it: an array of values that name each other by their place. */
const flatted = (seed: string, bytes: number) =>
  JSON.stringify([
    { startData: '1', resultData: '2', executionData: '3' },
    {},
    { runData: '4', lastNodeExecuted: '5' },
    { contextData: '1', nodeExecutionStack: '6' },
    { Agent: '7' },
    'Agent',
    [],
    prose(seed, bytes),
  ])

async function start(app: Application, id: number): Promise<void> {
  await app.query(
    `insert into execution_entity (id, finished, mode, status, "startedAt", "workflowId") values ($1, false, 'webhook', 'running', $2, 'wf-1')`,
    [id, timeOf(id)],
  )
  await app.query(`insert into execution_data ("executionId", "workflowData", data) values ($1, $2, $3)`, [
    id,
    '{"id":"wf-1","name":"w","nodes":[]}',
    flatted(`${id} start`, 60),
  ])
}

async function finish(app: Application, id: number, bytes: number): Promise<void> {
  await app.query(
    `update execution_entity set finished = true, status = 'success', "stoppedAt" = $2 where id = $1`,
    [id, timeOf(id + 1)],
  )
  await app.query('update execution_data set data = $2 where "executionId" = $1', [
    id,
    flatted(`${id} end`, bytes),
  ])
}

const sizes = [12_000, 200, 45_000, 9000, 6000]

export const n8n: Shape = {
  name: 'n8n',
  tables: `
    create table execution_entity (
      id integer primary key, finished boolean not null, mode varchar not null, status varchar not null,
      "startedAt" timestamptz(3), "stoppedAt" timestamptz(3), "workflowId" varchar(36) not null);
    create table execution_data (
      "executionId" integer primary key references execution_entity (id) on delete cascade,
      "workflowData" json not null, data text not null)`,
  tenants: { execution_data: null },
  fill: async app => {
    for (let id = 1; id <= 12; id++) {
      await start(app, id)
      if (id % 6 !== 0) await finish(app, id, sizes[id % 5] ?? 0)
    }
  },
  writes: {
    'executions start and end': async (app, round) => {
      for (let n = 0; n < 6; n++) {
        await start(app, 100 * round + n)
        await finish(app, 100 * round + n, sizes[n % 5] ?? 0)
      }
    },
    'an execution saves its progress after every node': async (app, round) => {
      await start(app, 100 * round + 50)
      for (const bytes of [3000, 9000, 15_000, 21_000]) await finish(app, 100 * round + 50, bytes)
    },
    'an execution is run again, and fails early': async (app, round) => {
      await finish(app, 2, 100 + round)
      await finish(app, 6, 10_000 + round)
    },
    'a column beside it is changed': (app, round) =>
      app
        .query(`update execution_data set "workflowData" = $2 where "executionId" = any ($1)`, [
          [1, 3, 5],
          `{"id":"wf-1", "round":${round}}`,
        ])
        .then(() => undefined),
    'old executions are pruned': (app, round) =>
      app
        .query('delete from execution_entity where id in ($1, $2)', [7 + round, 100 * round + 1])
        .then(() => undefined),
  },
  reads: {
    'the list of executions': `select e.id, e.status, e."stoppedAt", d."workflowData" from execution_entity e join execution_data d on d."executionId" = e.id order by e.id`,
  },
  attack: {
    name: 'data that looks like a stub',
    run: async (zoo, { admin, store }) => {
      const tenantId = await value<string>(admin, 'select lighter.single_tenant()::text')
      const client = createLighterClient({ pool: admin, store, tenantId })
      // An artifact of this tenant that came off no row.
      const { id: other } = await client.put({ kind: 'agent_trace', payload: { secret: true } })
      const stub = (id: string) => `{"artifact_ref": "${id}"}`
      const texts = [
        stub(other),
        stub(uuid('no artifact')),
        ` ${stub(uuid('no artifact'))}`,
        stub(uuid('no artifact').toUpperCase()),
        `${stub(other)}${flatted('tail', 12_000)}`,
        '{"artifact_ref": null}',
        '',
      ]
      await zoo.write(async app => {
        for (const [i, text] of texts.entries()) {
          await start(app, 9000 + i)
          await app.query('update execution_data set data = $2 where "executionId" = $1', [9000 + i, text])
        }
      })
      await zoo.settled()
      for (const [i, text] of texts.entries())
        expect(await zoo.app.read('execution_data', 'data', String(9000 + i))).toBe(text)
    },
    named: 'public.execution_data.data, 1 row(s): 9004',
  },
}
