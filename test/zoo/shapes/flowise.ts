// Flowise: uuid keys, JSON in columns of type text. An execution names its workspace, a message does not.
import { expect } from 'vitest'
import { column } from '../../support/sql.ts'
import type { Application, Shape } from '../shape.ts'
import { prose, timeOf, uuid } from '../text.ts'

const documentsOf = (seed: string, bytes: number) =>
  JSON.stringify([
    { pageContent: prose(seed, bytes), metadata: { source: `${seed}.pdf`, loc: { pageNumber: 1 } } },
  ])

const reasoningOf = (seed: string, bytes: number) =>
  JSON.stringify([{ agentName: 'Supervisor', state: prose(seed, bytes), usedTools: [] }])

const say = (app: Application, name: string, documents: number, reasoning: number | null) =>
  app.query(
    `insert into chat_message (id, role, chatflowid, content, "sourceDocuments", "agentReasoning", "chatId", "createdDate")
     values ($1, 'apiMessage', $2, $3, $4, $5, 'c1', $6)`,
    [
      uuid(`message ${name}`),
      uuid('flow'),
      `about ${name}`,
      documentsOf(name, documents),
      reasoning === null ? null : reasoningOf(name, reasoning),
      timeOf(1),
    ],
  )

const execute = (app: Application, name: string, workspace: string, bytes: number) =>
  app.query(
    `insert into execution (id, "executionData", state, "agentflowId", "sessionId", "workspaceId", "createdDate")
     values ($1, $2, 'INPROGRESS', $3, 's', $4, $5)`,
    [uuid(`execution ${name}`), reasoningOf(name, bytes), uuid('flow'), workspace, timeOf(2)],
  )

export const flowise: Shape = {
  name: 'Flowise',
  tables: `
    create table chat_message (
      id uuid primary key default gen_random_uuid(), role varchar not null, chatflowid uuid not null, content text not null,
      "sourceDocuments" text, "usedTools" text, "agentReasoning" text, "chatId" varchar not null, "createdDate" timestamp not null);
    create table execution (
      id uuid primary key default gen_random_uuid(), "executionData" text not null, state varchar not null,
      "agentflowId" uuid not null, "sessionId" varchar not null, "workspaceId" varchar not null, "createdDate" timestamp not null)`,
  tenants: { chat_message: null, execution: 'm."workspaceId"' },
  fill: async app => {
    for (let n = 0; n < 10; n++) {
      await say(app, `old ${n}`, n % 3 === 0 ? 5000 : 9000 + 1000 * n, n % 2 === 0 ? 11_000 : null)
      await execute(app, `old ${n}`, `ws-${n % 2}`, n % 5 === 0 ? 100 : 12_000)
    }
  },
  writes: {
    'messages are stored': async (app, round) => {
      for (let n = 0; n < 5; n++)
        await say(app, `${round} ${n}`, n % 2 === 0 ? 16_000 : 90, n > 2 ? 20_000 : 50)
    },
    'an execution saves its data after every step, then its state alone': async (app, round) => {
      await execute(app, `${round}`, 'ws-0', 50)
      for (const bytes of [3000, 8500, 17_000])
        await app.query('update execution set "executionData" = $2 where id = $1', [
          uuid(`execution ${round}`),
          reasoningOf(`${round} ${bytes}`, bytes),
        ])
      await app.query(`update execution set state = 'FINISHED' where id = any ($1)`, [
        [uuid(`execution ${round}`), uuid('execution old 1')],
      ])
    },
    'a message is saved with all its columns as they were read': async (app, round) => {
      const [row] = await app.query<Record<string, string | null>>(
        'select * from chat_message where id = $1',
        [uuid('message old 4')],
      )
      await app.query(
        `update chat_message set role = $2, chatflowid = $3, content = $4, "sourceDocuments" = $5, "usedTools" = $6, "agentReasoning" = $7, "chatId" = $8
          where id = $1`,
        [
          row?.id,
          row?.role,
          row?.chatflowid,
          `edited ${round}`,
          row?.sourceDocuments,
          row?.usedTools,
          row?.agentReasoning,
          row?.chatId,
        ],
      )
    },
    'text is added to what the program has read': async (app, round) => {
      const id = uuid('message old 2')
      const reasoning = await app.read('chat_message', 'agentReasoning', id)
      await app.query('update chat_message set "agentReasoning" = $2 where id = $1', [
        id,
        `${reasoning}\n${reasoningOf(`more ${round}`, 3000)}`,
      ])
    },
    'a chat is cleared': async (app, round) => {
      await app.query('delete from chat_message where id = any ($1)', [
        [uuid(`message ${round} 0`), uuid(`message old ${6 + round}`)],
      ])
      await app.query('update chat_message set "agentReasoning" = null where id = $1', [
        uuid(`message ${round} 3`),
      ])
    },
  },
  reads: {
    'the messages of a chat': `select id, role, content, "createdDate" from chat_message where "chatId" = 'c1' order by "createdDate", id`,
    'executions by state': `select state, count(*)::int from execution group by state order by state`,
  },
  attack: {
    name: 'rows are copied with what stands in them, also when the first of them is gone',
    run: async (zoo, { admin }) => {
      await zoo.write(async app => {
        for (const n of [1, 2, 3])
          await app.query(
            `insert into chat_message select overlay(id::text placing $2 from 1)::uuid, role, chatflowid, content, "sourceDocuments", "usedTools", "agentReasoning", $1, "createdDate"
               from chat_message where "chatId" = 'c1'`,
            [`copy ${n}`, `c0b1ed0${n}`],
          )
        await app.query(`delete from chat_message where "chatId" = 'c1'`)
      })
      await zoo.settled()
      const stubs = await column<string>(
        admin,
        `select "sourceDocuments" from chat_message where "sourceDocuments" like '{"artifact_ref%'`,
      )
      expect(stubs.length).toBeGreaterThan(9)
      expect(new Set(stubs).size).toBe(stubs.length / 3)
    },
  },
}
