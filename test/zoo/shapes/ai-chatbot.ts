// The Vercel AI chatbot: uuid keys, parts of a message as json, a tenant who owns the chat, documents in versions.
import { expect } from 'vitest'
import type { Application, Shape } from '../shape.ts'
import { prose, spaced, timeOf, uuid } from '../text.ts'

const users = ['ann', 'bob'].map(uuid)
const chats = users.map((_, i) => uuid(`chat ${i}`))
const message = (n: number | string) => uuid(`message ${n}`)

const partsOf = (seed: string, bytes: number) =>
  spaced([
    { type: 'text', text: prose(seed, bytes / 2) },
    {
      type: 'tool-getWeather',
      toolCallId: seed,
      state: 'output-available',
      output: prose(`${seed} output`, bytes / 2),
    },
  ])

/** As Drizzle writes an array of messages: one statement. */
async function saveMessages(app: Application, chat: number, seeds: string[], bytes: number[]): Promise<void> {
  await app.query(
    `insert into "Message_v2" (id, "chatId", role, parts, attachments, "createdAt")
     select id, $1, 'assistant', parts, '[]', "createdAt" from unnest($2::uuid[], $3::json[], $4::timestamp[]) u(id, parts, "createdAt")`,
    [
      chats[chat],
      seeds.map(message),
      seeds.map((seed, i) => partsOf(seed, bytes[i] ?? 0)),
      seeds.map((_, i) => timeOf(chat * 100 + i)),
    ],
  )
}

const saveDocument = (app: Application, n: number, version: number, bytes: number) =>
  app.query(
    `insert into "Document" (id, "createdAt", title, content, "userId") values ($1, $2, $3, $4, $5)`,
    [
      uuid(`document ${n}`),
      timeOf(version),
      `Essay ${n}`,
      prose(`document ${n} ${version}`, bytes),
      users[n % 2],
    ],
  )

export const aiChatbot: Shape = {
  name: 'Vercel AI chatbot',
  tables: `
    create table "User" (id uuid primary key, email varchar(64) not null);
    create table "Chat" (
      id uuid primary key, "createdAt" timestamp not null, title text not null, "userId" uuid not null references "User" (id),
      visibility varchar not null default 'private');
    alter table "Chat" enable row level security;
    create policy visible on "Chat" using (visibility in ('private', 'public'));
    create table "Message_v2" (
      id uuid primary key default gen_random_uuid(), "chatId" uuid not null references "Chat" (id), role varchar not null,
      parts json not null, attachments json not null, "createdAt" timestamp not null);
    create table "Document" (
      id uuid not null default gen_random_uuid(), "createdAt" timestamp not null, title text not null, content text,
      "userId" uuid not null references "User" (id), primary key (id, "createdAt"))`,
  tenants: {
    Message_v2: `(select c."userId" from twin."Chat" c where c.id = m."chatId")`,
    Document: 'm."userId"',
  },
  fill: async app => {
    for (const [i, user] of users.entries()) {
      await app.query('insert into "User" values ($1, $2)', [user, `${i}@example.com`])
      await app.query('insert into "Chat" values ($1, $2, $3, $4)', [chats[i], timeOf(i), `Chat ${i}`, user])
      await saveMessages(app, i, [`old ${i} a`, `old ${i} b`, `old ${i} c`], [5000, 14_000, 40_000])
      for (const version of [1, 2, 3])
        await saveDocument(app, i, version, version === 1 ? 6000 : 9000 * version)
    }
  },
  writes: {
    'messages are saved': async (app, round) => {
      for (const chat of [0, 1])
        await saveMessages(
          app,
          chat,
          [0, 1, 2, 3].map(n => `${round} ${chat} ${n}`),
          [200, 10_000, 22_000, 90_000],
        )
    },
    'a streamed answer is finished': async (app, round) => {
      await app.query('update "Message_v2" set parts = $2 where id = $1', [
        message(`${round} 0 0`),
        partsOf(`finished ${round}`, 30_000),
      ])
      await app.query('update "Message_v2" set parts = $2 where id = $1', [
        message(`${round} 1 1`),
        '[ {"type":"text", "text":"short"} ]',
      ])
      await app.query('update "Message_v2" set parts = $2 where id = $1', [
        message('old 0 b'),
        partsOf(`old again ${round}`, 16_000),
      ])
    },
    'a row is saved with all its columns as the driver has parsed them': async (app, round) => {
      const id = message('old 1 b')
      if (round === 1)
        await app.query('update "Message_v2" set parts = $2 where id = $1', [
          id,
          JSON.stringify([{ type: 'text', text: prose('compact', 12_000) }]),
        ])
      const [row] = await app.query<Record<string, unknown>>('select * from "Message_v2" where id = $1', [id])
      await app.query('update "Message_v2" set role = $2, parts = $3, attachments = $4 where id = $1', [
        id,
        `saved ${round}`,
        JSON.stringify(row?.parts),
        JSON.stringify(row?.attachments),
      ])
    },
    'a document gets another version, and the newest one is streamed into': async (app, round) => {
      await saveDocument(app, 0, 10 * round, 12_000)
      await saveDocument(app, 1, 10 * round, 300)
      await app.query(
        `update "Document" set content = $2 where id = $1 and "createdAt" = (select max("createdAt") from "Document" where id = $1)`,
        [uuid('document 1'), prose(`streamed ${round}`, 18_000)],
      )
    },
    'the messages after an edited one are deleted': async (app, round) => {
      await app.query(
        `delete from "Message_v2" where "chatId" = $1 and "createdAt" >= $2 and id <> all ($3)`,
        [chats[1], timeOf(102), [message('old 1 c'), message(`${round} 1 3`)]],
      )
    },
    'the same row is saved once more, now without its payload in it': async (app, round) => {
      const id = message('old 1 b')
      const [row] = await app.query<Record<string, unknown>>('select * from "Message_v2" where id = $1', [id])
      await app.query('update "Message_v2" set role = $2, parts = $3 where id = $1', [
        id,
        `again ${round}`,
        JSON.stringify(row?.parts),
      ])
    },
    'a chat becomes public': async (app, round) => {
      await app.query('update "Chat" set visibility = $2 where id = $1', [
        chats[0],
        round === 1 ? 'public' : 'private',
      ])
      await app.query(`update "Message_v2" set role = 'user' where id = $1`, [message('old 0 c')])
    },
  },
  reads: {
    'the history of chats': `select c.id, c.title, count(*)::int as messages from "Chat" c join "Message_v2" m on m."chatId" = c.id group by c.id order by c.id`,
    'the versions of a document': `select id, "createdAt", title from "Document" order by id, "createdAt" desc`,
  },
  attack: {
    name: 'JSON with \\u0000, half of a surrogate pair, a name twice, and numbers of any length',
    run: async zoo => {
      const filler = prose('odd json', 9000).replaceAll(/["\\\n\t]/g, ' ')
      const texts = [
        `[{"text": "nul \\u0000 and \\ud83d alone", "text": "the name again"}, "${filler}"]`,
        `  {"a":1,"a" : 2,\t"a":3.0000000000000000000000001, "b": 1e400, "c": -0.0, "d": "${filler}"}\r\n`,
        `"${filler}\\u0000\\/"`,
        `[${'['.repeat(500)}"${filler}"${']'.repeat(500)}]`,
        `{"artifact_ref": "${uuid('none')}", "artifact_ref": "${filler}"}`,
      ]
      await zoo.write(async app => {
        for (const [i, text] of texts.entries())
          await app.query(
            `insert into "Message_v2" values ($1, $2, 'user', $3, '[]', now())`.replace(
              'now()',
              `'${timeOf(900 + i)}'`,
            ),
            [message(`odd ${i}`), chats[0], text],
          )
      })
      await zoo.settled()
      for (const [i, text] of texts.entries()) {
        expect(await zoo.app.read('Message_v2', 'parts', message(`odd ${i}`))).toBe(text)
        const [row] = await zoo.app.query<{ bytes: number }>(
          'select octet_length(parts::text) as bytes from "Message_v2" where id = $1',
          [message(`odd ${i}`)],
        )
        expect(row?.bytes).toBeLessThan(100)
      }
    },
  },
}
