// Tables whose key leads with the tenant, as Citus and other sharded databases have them.
import { expect } from 'vitest'
import { errorOf } from '../../support/sql.ts'
import type { Application, Shape } from '../shape.ts'
import { prose, uuid } from '../text.ts'

const tenants = ['east', 'west'].map(uuid)

const metadataOf = (seed: string, calls: number, trace: number) =>
  JSON.stringify({
    model: 'gpt-5',
    ...(calls > 0
      ? { tool_interactions: Array.from({ length: calls }, (_, n) => ({ n, o: prose(`${seed} ${n}`, 700) })) }
      : {}),
    ...(trace > 0 ? { trace: prose(`${seed} trace`, trace) } : {}),
  })

const insert = (app: Application, tenant: number, id: number, calls: number, trace: number) =>
  app.query(
    `insert into messages (tenant_id, id, role, metadata) values ($1, $2, 'assistant', $3)
     on conflict (tenant_id, id) do update set metadata = excluded.metadata`,
    [tenants[tenant], id, metadataOf(`${tenant} ${id} ${calls} ${trace}`, calls, trace)],
  )

const update = (app: Application, tenant: number, ids: number[], set: string, json: string) =>
  app
    .query(`update messages set ${set} where tenant_id = $1 and id = any ($2)`.replaceAll('?', '$3'), [
      tenants[tenant],
      ids,
      json,
    ])
    .then(() => undefined)

export const tenantFirst: Shape = {
  name: 'Keys that begin with the tenant',
  tables: `
    create table messages (tenant_id uuid not null, id bigint not null, role text, metadata jsonb, primary key (tenant_id, id))`,
  tenants: { messages: 'm.tenant_id' },
  fill: async app => {
    // The same numbers for both.
    for (const tenant of [0, 1])
      for (let id = 1; id <= 8; id++)
        await insert(app, tenant, id, id % 3, id % 4 === 0 ? 11_000 : id % 3 === 0 ? 4000 : 0)
  },
  writes: {
    'messages are written': async (app, round) => {
      for (const tenant of [0, 1])
        for (let n = 0; n < 5; n++) await insert(app, tenant, 100 * round + n, n % 2, n > 2 ? 15_000 : 0)
    },
    'messages are upserted': async (app, round) => {
      await insert(app, 0, 4, 3, 9000 * round)
      await insert(app, 1, 4, 0, 0)
      await insert(app, 1, 5, 2, 20_000 + round)
    },
    'keys are added in place': async (app, round) => {
      await update(app, 0, [1, 2, 8], 'metadata = metadata || ?', `{"feedback": ${round}}`)
      await update(app, 1, [2, 7], `metadata = jsonb_set(metadata, '{note}', ?)`, `"noted ${round}"`)
    },
    'messages are deleted': (app, round) =>
      app
        .query('delete from messages where (tenant_id, id) in (($1, $3), ($2, $4))', [
          tenants[0],
          tenants[1],
          6 + round,
          100 * round + 1,
        ])
        .then(() => undefined),
  },
  reads: {
    'messages by tenant and model': `select tenant_id, metadata ->> 'model' as model, count(*)::int from messages group by 1, 2 order by 1, 2`,
  },
  attack: {
    name: 'a row is given to another tenant: nobody reads the payload, until it is given back',
    run: async zoo => {
      const [from, to] = tenants
      if (from === undefined || to === undefined) throw new Error('two tenants are needed')
      const written = await zoo.twin.read('messages', 'metadata', from, '5')
      const move = (a: string, b: string) =>
        zoo.write(app =>
          app
            .query(
              'update messages set tenant_id = $2, id = id + $3 where tenant_id = $1 and id = any ($4)',
              [a, b, a === from ? 9000 : -9000, a === from ? [5] : [9005]],
            )
            .then(() => undefined),
        )
      await move(from, to)
      await zoo.settled()
      expect(await errorOf(zoo.app.read('messages', 'metadata', to, '9005'))).toMatchObject({
        code: 'artifact_not_found',
      })
      await move(to, from)
      expect(await zoo.app.read('messages', 'metadata', from, '5')).toBe(written)
    },
  },
}
