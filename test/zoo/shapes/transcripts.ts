// The original's own example: a transcript is cleared, and the artifact's id stands in a column that the table has already.
import { randomUUID } from 'node:crypto'
import { expect } from 'vitest'
import { errorOf, value } from '../../support/sql.ts'
import type { Application, Shape } from '../shape.ts'
import { prose, timeOf, uuid } from '../text.ts'

const tenants = ['first', 'second'].map(uuid)
const idOf = (name: string | number) => uuid(`conversation ${name}`)

const transcriptOf = (seed: string, bytes: number) =>
  JSON.stringify(
    Array.from({ length: 4 }, (_, n) => ({
      role: n % 2 ? 'assistant' : 'user',
      text: prose(`${seed} ${n}`, bytes / 4),
    })),
  )

const insert = (app: Application, name: string, tenant: number, bytes: number | null) =>
  app.query(
    'insert into conversations (id, tenant_id, title, transcript_json, updated_at) values ($1, $2, $3, $4, $5)',
    [idOf(name), tenants[tenant], name, bytes === null ? null : transcriptOf(name, bytes), timeOf(4)],
  )

export const transcripts: Shape = {
  name: 'Transcripts with an artifact id',
  tables: `
    create table conversations (
      id uuid primary key, tenant_id uuid not null, title text, transcript_json jsonb, artifact_id uuid, updated_at timestamptz not null);
    alter table conversations enable row level security;
    create policy of_a_tenant on conversations using (tenant_id is not null)`,
  tenants: { conversations: 'm.tenant_id' },
  fill: async app => {
    for (const tenant of [0, 1])
      for (let n = 0; n < 6; n++)
        await insert(app, `old ${tenant} ${n}`, tenant, n === 5 ? null : ([5000, 12_000, 60_000][n % 3] ?? 0))
  },
  writes: {
    'conversations are stored': async (app, round) => {
      for (const tenant of [0, 1])
        for (let n = 0; n < 4; n++)
          await insert(app, `${round} ${tenant} ${n}`, tenant, n % 2 === 0 ? 300 : 14_000)
    },
    'a transcript is replaced, by another one and by a short one': async (app, round) => {
      await app.query('update conversations set transcript_json = $2 where id = $1', [
        idOf('old 0 1'),
        transcriptOf(`replaced ${round}`, 18_000),
      ])
      await app.query('update conversations set transcript_json = $2 where id = $1', [
        idOf(`${round} 1 1`),
        '[]',
      ])
    },
    'a turn is added to what the program has read': async (app, round) => {
      const id = idOf('old 1 2')
      const turns = JSON.parse((await app.read('conversations', 'transcript_json', id)) ?? '')
      await app.query('update conversations set transcript_json = $2 where id = $1', [
        id,
        JSON.stringify([...turns, { role: 'user', text: prose(`turn ${round}`, 500) }]),
      ])
    },
    'a row is saved with all its columns as they were read': async (app, round) => {
      for (const name of ['old 0 2', 'old 0 0', 'old 1 5']) {
        const [row] = await app.query<Record<string, string | null>>(
          'select tenant_id, transcript_json::text, artifact_id from conversations where id = $1',
          [idOf(name)],
        )
        await app.query(
          'update conversations set tenant_id = $2, title = $3, transcript_json = $4, artifact_id = $5 where id = $1',
          [idOf(name), row?.tenant_id, `saved ${round}`, row?.transcript_json, row?.artifact_id],
        )
      }
    },
    'a new transcript is saved beside the old id': async (app, round) => {
      const [row] = await app.query<{ artifact_id: string | null }>(
        'select artifact_id from conversations where id = $1',
        [idOf('old 0 4')],
      )
      await app.query('update conversations set transcript_json = $2, artifact_id = $3 where id = $1', [
        idOf('old 0 4'),
        transcriptOf(`beside ${round}`, 13_000),
        row?.artifact_id,
      ])
    },
    'a transcript is removed, and a conversation deleted': async (app, round) => {
      await app.query('update conversations set transcript_json = null, artifact_id = null where id = $1', [
        idOf(`${round} 0 1`),
      ])
      await app.query('delete from conversations where id = $1', [idOf(`${round} 0 3`)])
    },
  },
  reads: {
    'conversations that have a transcript': `select id, title from conversations where transcript_json is not null or artifact_id is not null order by id`,
  },
  attack: {
    name: 'an id of another tenant, or of nothing, in the column: an error that reveals nothing',
    run: async (zoo, { admin }) => {
      const secret = await value<string>(
        admin,
        'select artifact_id::text from conversations where tenant_id = $1 and artifact_id is not null order by id limit 1',
        [tenants[0]],
      )
      const messages: string[] = []
      for (const id of [secret, randomUUID()]) {
        await zoo.app.query(
          'insert into conversations (id, tenant_id, artifact_id, updated_at) values ($1, $2, $3, now())',
          [idOf('forged'), tenants[1], id],
        )
        const error = await errorOf(zoo.app.read('conversations', 'transcript_json', idOf('forged')))
        expect(error.code).toBe('artifact_not_found')
        messages.push(error.message.replaceAll(id, 'it'))
        await zoo.app.query('delete from conversations where id = $1', [idOf('forged')])
      }
      expect(messages[1]).toBe(messages[0])
      const kinds = 'select string_agg(distinct kind, $1) from public.artifact_refs'
      expect(await value(admin, kinds, [','])).toBe('chat_transcript')
    },
  },
}
