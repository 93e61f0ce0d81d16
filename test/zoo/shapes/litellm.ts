// LiteLLM's spend logs: a text id, request and response as jsonb, written in batches. A team may be named, or not.
import { expect } from 'vitest'
import { column } from '../../support/sql.ts'
import type { Application, Shape } from '../shape.ts'
import { prose, timeOf, uuid } from '../text.ts'

const requestId = (name: string) => `chatcmpl-${uuid(name)}`
const messagesOf = (seed: string, bytes: number) =>
  JSON.stringify([
    { role: 'system', content: 'Be brief.' },
    { role: 'user', content: [{ type: 'text', text: prose(seed, bytes) }] },
  ])
const responseOf = (seed: string, bytes: number) =>
  JSON.stringify({
    id: requestId(seed),
    model: 'gpt-5',
    choices: [
      {
        index: 0,
        finish_reason: 'stop',
        message: { role: 'assistant', content: prose(`${seed} out`, bytes) },
      },
    ],
    usage: { prompt_tokens: 1200, completion_tokens: 340, total_tokens: 1540 },
  })

interface Log {
  name: string
  request: number
  response: number
  team?: string
}

/** Of a batch that was sent twice the second time writes nothing. */
const writeBatch = (app: Application, logs: Log[]) =>
  app.query(
    `insert into "LiteLLM_SpendLogs" (request_id, call_type, spend, "startTime", model, team_id, messages, response)
     select id, 'acompletion', 0.0123, at, 'gpt-5', team, messages, response
       from unnest($1::text[], $2::timestamp[], $3::text[], $4::jsonb[], $5::jsonb[]) u(id, at, team, messages, response)
     on conflict do nothing`,
    [
      logs.map(log => requestId(log.name)),
      logs.map((_, n) => timeOf(n)),
      logs.map(log => log.team ?? null),
      logs.map(log => messagesOf(log.name, log.request)),
      logs.map(log => responseOf(log.name, log.response)),
    ],
  )

const batch = (name: string): Log[] =>
  [
    { name: 'a', request: 12_000, response: 5000, team: 'team-a' },
    { name: 'b', request: 200, response: 200 },
    { name: 'c', request: 31_000, response: 9500 },
    { name: 'd', request: 500, response: 14_000, team: 'team-b' },
    { name: 'e', request: 64_000, response: 100, team: 'team-a' },
  ].map(log => ({ ...log, name: `${name} ${log.name}` }))

export const litellm: Shape = {
  name: 'LiteLLM spend logs',
  tables: `
    create table "LiteLLM_SpendLogs" (
      request_id text primary key, call_type text not null, api_key text not null default '', spend double precision not null default 0,
      total_tokens integer not null default 0, "startTime" timestamp(3) not null, model text not null default '',
      metadata jsonb default '{}', request_tags jsonb default '[]', team_id text, messages jsonb default '{}', response jsonb default '{}')`,
  tenants: { LiteLLM_SpendLogs: null },
  fill: async app => {
    await writeBatch(app, batch('old'))
    await writeBatch(app, batch('older'))
  },
  writes: {
    'logs are written in batches': async (app, round) => {
      await writeBatch(app, batch(`${round} first`))
      await writeBatch(app, batch(`${round} second`))
    },
    'a batch is sent again': async (app, round) => {
      await writeBatch(app, [
        ...batch(`${round} second`),
        { name: `${round} late`, request: 18_000, response: 18_000 },
      ])
    },
    'messages are added to an array in the row': async (app, round) => {
      const id = requestId('old a')
      const messages = JSON.parse((await app.read('LiteLLM_SpendLogs', 'messages', id)) ?? '')
      await app.query('update "LiteLLM_SpendLogs" set messages = $2 where request_id = $1', [
        id,
        JSON.stringify([...messages, { role: 'user', content: `and ${round}` }]),
      ])
    },
    'the spend is corrected': (app, round) =>
      app
        .query(
          `update "LiteLLM_SpendLogs" set spend = spend * 2, total_tokens = $1 where team_id = 'team-a'`,
          [round],
        )
        .then(() => undefined),
    'old logs are deleted': (app, round) =>
      app
        .query(
          `delete from "LiteLLM_SpendLogs" where request_id in (select request_id from "LiteLLM_SpendLogs" where request_id = any ($1))`,
          [
            [
              requestId(`${round === 1 ? 'older' : '1 first'} a`),
              requestId(`${round === 1 ? 'older' : '1 first'} c`),
            ],
          ],
        )
        .then(() => undefined),
  },
  reads: {
    'spend by team and model': `select team_id, model, sum(spend)::numeric(12, 6) as spend, count(*)::int from "LiteLLM_SpendLogs" group by 1, 2 order by 1, 2`,
  },
  attack: {
    name: 'a prompt looks like a pointer, of this column, of the other one, or of none',
    run: async (zoo, { admin }) => {
      const source = await zoo.source('LiteLLM_SpendLogs', 'response')
      const [response] = await column<string>(
        admin,
        'select id::text from public.artifact_refs where source_id = $1 limit 1',
        [source.id],
      )
      const long = prose('long prompt', 9000)
      const prompts = [
        { artifact_ref: response },
        { artifact_ref: uuid('no artifact') },
        { artifact_metadata_ref: response, artifact_metadata_kind: 'column_value' },
        { tool_interactions_ref: uuid('no artifact'), tool_interactions_count: 3 },
        [{ artifact_metadata_ref: response }],
        [{ artifact_ref: response }, long],
        { artifact_ref: response, long },
        { tool_interactions: [long] },
      ]
      await zoo.write(async app => {
        for (const [i, prompt] of prompts.entries())
          await app.query(
            `insert into "LiteLLM_SpendLogs" (request_id, call_type, "startTime", messages) values ($1, 'acompletion', $2, $3)`,
            [`prompt ${i}`, timeOf(i), JSON.stringify(prompt)],
          )
      })
      await zoo.settled()
      for (const [i, prompt] of prompts.entries())
        expect(
          JSON.parse((await zoo.app.read('LiteLLM_SpendLogs', 'messages', `prompt ${i}`)) ?? ''),
        ).toEqual(prompt)
    },
    named: 'public."LiteLLM_SpendLogs".messages, 4 row(s)',
  },
}
