// Open WebUI: a whole chat in one json value, written again at every turn. The user, a text, is the tenant.
import { expect } from 'vitest'
import { column } from '../../support/sql.ts'
import type { Application, Shape } from '../shape.ts'
import { prose, uuid } from '../text.ts'

const users = ['user-a', 'user-b'].map(uuid)
const chatId = (name: string) => uuid(`chat ${name}`)

interface Chat {
  title: string
  history: { currentId: string; messages: Record<string, { role: string; content: string }> }
}

const newChat = (name: string, turns: number, bytes: number): Chat => {
  const chat: Chat = { title: name, history: { currentId: '', messages: {} } }
  for (let turn = 0; turn < turns; turn++) addTurn(chat, name, bytes)
  return chat
}

function addTurn({ history }: Chat, name: string, bytes: number): void {
  const id = `m${Object.keys(history.messages).length}`
  history.messages[id] = { role: 'assistant', content: prose(`${name} ${id}`, bytes) }
  history.currentId = id
}

const insert = (app: Application, name: string, user: string | undefined, chat: Chat) =>
  app.query(
    `insert into chat (id, user_id, title, chat, created_at, updated_at) values ($1, $2, $3, $4, 1764000000, 1764000000)`,
    [chatId(name), user, name, JSON.stringify(chat)],
  )

/** Reads the chat, and writes all of it with one turn more. */
async function turn(app: Application, name: string, bytes: number): Promise<void> {
  const chat: Chat = JSON.parse((await app.read('chat', 'chat', chatId(name))) ?? '')
  addTurn(chat, name, bytes)
  await app.query('update chat set chat = $2, title = $3, updated_at = updated_at + 1 where id = $1', [
    chatId(name),
    JSON.stringify(chat),
    chat.title,
  ])
}

export const openWebui: Shape = {
  name: 'Open WebUI',
  tables: `
    create table chat (
      id varchar primary key, user_id varchar, title text, chat json, created_at bigint, updated_at bigint, share_id text unique,
      archived boolean default false, pinned boolean default false, meta json default '{}', folder_id text)`,
  tenants: { chat: 'm.user_id' },
  fill: async app => {
    for (const [i, user] of users.entries()) {
      await insert(app, `old ${i}`, user, newChat(`old ${i}`, 4, 4000))
      await insert(app, `kept ${i}`, user, newChat(`kept ${i}`, 10, 3000))
      await insert(app, `new ${i}`, user, newChat(`new ${i}`, 1, 3000))
      await insert(app, `empty ${i}`, user, newChat(`empty ${i}`, 0, 0))
    }
  },
  writes: {
    'chats go on, turn by turn': async (app, round) => {
      for (const name of ['old 0', 'new 0', 'new 1'])
        for (let n = 0; n < 3; n++) await turn(app, name, 2500 * round)
    },
    'chats begin': async (app, round) => {
      await insert(app, `${round} long`, users[0], newChat(`${round} long`, 6, 9000))
      await insert(app, `${round} short`, users[1], newChat(`${round} short`, 2, 2500))
    },
    'a row is saved with all its columns as they were read': async (app, round) => {
      for (const name of ['kept 0', 'empty 1']) {
        const [row] = await app.query<Record<string, unknown>>(
          'select title, chat::text as chat, meta::text as meta, archived, pinned, folder_id from chat where id = $1',
          [chatId(name)],
        )
        await app.query(
          'update chat set title = $2, chat = $3, meta = $4, archived = $5, pinned = $6, folder_id = $7 where id = $1',
          [chatId(name), `saved ${round}`, row?.chat, row?.meta, true, row?.pinned, `folder ${round}`],
        )
      }
    },
    'a chat is shared: copied for another user': async (app, round) => {
      const id = chatId(`shared ${round}`)
      const chat = await app.read('chat', 'chat', chatId('kept 1'))
      await app.query(`insert into chat (id, user_id, title, chat) values ($1, $2, 'shared', $3)`, [
        id,
        `shared-${chatId('kept 1')}`,
        chat,
      ])
      await app.query('update chat set share_id = $2 where id = $1', [chatId('kept 1'), id])
    },
    'a chat is cut short, another one deleted': async (app, round) => {
      await app.query('update chat set chat = $2 where id = $1', [
        chatId('old 1'),
        JSON.stringify(newChat('old 1', round, 200)),
      ])
      await app.query('delete from chat where id = $1', [chatId(`${round} long`)])
    },
    'a chat is written three times at once': async (app, round) => {
      for (const n of [1, 2, 3])
        await app.query('update chat set chat = $2 where id = $1', [
          chatId('old 1'),
          JSON.stringify(newChat(`burst ${round} ${n}`, 3, 5000)),
        ])
    },
  },
  reads: {
    'the list of chats': `select id, title, updated_at, archived, folder_id from chat where user_id is not null order by updated_at desc, id`,
  },
  attack: {
    name: 'a user writes what looks like a stub of another user’s chat',
    run: async (zoo, { admin }) => {
      const [secret] = await column<string>(
        admin,
        'select a.id::text from public.artifact_refs a join chat c on c.id = a.row_id where c.user_id = $1 order by a.id limit 1',
        [users[0]],
      )
      if (secret === undefined) throw new Error('nothing of the first user has left')
      const texts = [
        `{"artifact_ref": "${secret}"}`,
        `{"artifact_ref":"${secret}"}`,
        `{"artifact_ref": "${uuid('no artifact')}"}`,
        `{"artifact_metadata_ref": "${secret}"}`,
        `[{"artifact_ref": "${secret}"}, "${'long '.repeat(3000)}"]`,
      ]
      await zoo.write(async app => {
        for (const [i, text] of texts.entries())
          await app.query('insert into chat (id, user_id, chat) values ($1, $2, $3)', [
            chatId(`forged ${i}`),
            users[1],
            text,
          ])
      })
      await zoo.settled()
      for (const [i, text] of texts.entries())
        expect(await zoo.app.read('chat', 'chat', chatId(`forged ${i}`))).toBe(text)
    },
    moved: 1,
  },
}
