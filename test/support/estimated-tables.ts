// Tables of differently shaped applications, filled with seeded rows: what an estimate is held to.
import type pg from 'pg'
import { generateMessages } from '../../src/demo/messages.ts'

export interface EstimatedTable {
  /** What is special about it. */
  name: string
  table: string
  column: string
  /** Makes the table, in an empty schema `zoo`. */
  create: string
  fill(db: Pick<pg.Pool, 'query'>): Promise<void>
  /** Arguments of lighter.attach beside table and column, as it takes them and as JSON. */
  attach?: { sql: string; said: Record<string, unknown> }
}

const tenantOf = (index: string) =>
  `('00000000-0000-4000-8000-' || lpad(to_hex((${index})::int), 12, '0'))::uuid`

/** Words that compress about as prose does: the same for the same seed. */
const proseSql = (seed: string, words: string) => `(
  select string_agg((array['the','customer','asked','for','a','refund','of','order','and','we','found','that','invoice','was','paid',
           'twice','shipping','address','changed','before','delivery','agent','replied','within','an','hour'])
           [1 + abs(hashint4(${seed} * 31 + w)) % 26] || case when w % 7 = 0 then ' ' || abs(hashint4(${seed} + w * 7))::text else '' end, ' ' order by w)
    from generate_series(1, ${words}) w)`

/** Bytes that no compressor makes shorter than three quarters. */
const noiseSql = (seed: string, blocks: string) =>
  `(select string_agg(encode(sha256((${seed} * 1000003::bigint + b)::text::bytea), 'base64'), '' order by b) from generate_series(1, ${blocks}) b)`

async function fillMessages(db: Pick<pg.Pool, 'query'>): Promise<void> {
  const messages = [...generateMessages({ messages: 3000, tenants: 5, seed: 11 })]
  const conversations = new Map(messages.map(m => [m.conversationId, m.tenantId]))
  await db.query('insert into zoo.chats (id, tenant_id) select * from unnest($1::uuid[], $2::uuid[])', [
    [...conversations.keys()],
    [...conversations.values()],
  ])
  await db.query(
    `insert into zoo.chat_messages (chat_id, role, content, metadata, created_at)
     select c, r, t, m, timestamptz '2026-01-01' + n * interval '20 seconds'
       from unnest($1::uuid[], $2::text[], $3::text[], $4::jsonb[]) with ordinality as u(c, r, t, m, n)`,
    [
      messages.map(m => m.conversationId),
      messages.map(m => m.role),
      messages.map(m => m.content),
      messages.map(m => m.metadata),
    ],
  )
}

const query =
  (sql: string): EstimatedTable['fill'] =>
  async db =>
    void (await db.query(sql))

export const estimatedTables: EstimatedTable[] = [
  {
    name: 'chat messages, the tenant in a parent, tool calls and traces',
    table: 'zoo.chat_messages',
    column: 'metadata',
    create: `
      create table zoo.chats (id uuid primary key, tenant_id uuid not null);
      create table zoo.chat_messages (
        id uuid primary key default gen_random_uuid(), chat_id uuid not null references zoo.chats, role text not null,
        content text not null, metadata jsonb, created_at timestamptz not null);
      create index on zoo.chat_messages (chat_id, created_at);`,
    fill: fillMessages,
  },
  {
    name: 'agent runs with a bigint key, traces of 20 to 60 KB in TOAST',
    table: 'zoo.agent_runs',
    column: 'trace',
    create: `
      create table zoo.agent_runs (
        id bigint generated always as identity primary key, tenant_id uuid not null, status text not null,
        trace jsonb not null, created_at timestamptz not null);
      create index on zoo.agent_runs (tenant_id, created_at);`,
    fill: query(`
      insert into zoo.agent_runs (tenant_id, status, trace, created_at)
      select ${tenantOf('n % 3')}, 'finished',
             jsonb_build_object('model', 'm-large', 'usage', jsonb_build_object('tokens', n * 17), 'steps',
               (select jsonb_agg(jsonb_build_object('step', s, 'text', ${proseSql('(n * 50 + s)', '120')})) from generate_series(1, 25 + n % 50) s)),
             timestamptz '2026-01-01' + n * interval '3 minutes'
        from generate_series(1, 500) n`),
  },
  {
    name: 'documents that no compressor makes smaller, an integer key, a long text beside them',
    table: 'zoo.documents',
    column: 'payload',
    create: `
      create table zoo.documents (
        id integer generated always as identity primary key, tenant_id uuid not null, title text not null, body text not null,
        payload jsonb, uploaded_on date not null);`,
    fill: query(`
      insert into zoo.documents (tenant_id, title, body, payload, uploaded_on)
      select ${tenantOf('n % 20')}, 'document ' || n, ${proseSql('n', '150')},
             case when n % 5 > 0 then jsonb_build_object('account_id', n, 'scan', ${noiseSql('n', '(240 + n % 200)')}) end,
             date '2026-01-01' + n / 20
        from generate_series(1, 1200) n`),
  },
  {
    name: 'tool calls and a heavy document in one row, forty tenants, a wide row beside them',
    table: 'zoo.tasks',
    column: 'metadata',
    create: `
      create table zoo.tasks (
        id uuid primary key default gen_random_uuid(), tenant_id uuid not null, state text not null, labels text[] not null,
        amount numeric not null, metadata jsonb not null, created_at timestamp not null);
      create index on zoo.tasks (state);
      create index on zoo.tasks (tenant_id);`,
    fill: query(`
      insert into zoo.tasks (tenant_id, state, labels, amount, metadata, created_at)
      select ${tenantOf('n % 40')}, (array['open', 'done'])[1 + n % 2], array['a' || n % 9, 'b' || n % 5], n * 1.37,
             jsonb_build_object('model', 'm', 'iterations', n % 4, 'tool_interactions',
               (select jsonb_agg(jsonb_build_object('tool', 'search', 'result', ${proseSql('(n * 9 + s)', '60')})) from generate_series(1, 1 + n % 6) s))
             || case when n % 3 = 0 then jsonb_build_object('document', ${proseSql('n', '2500')}) else '{}' end,
             timestamp '2026-01-01' + n * interval '1 minute'
        from generate_series(1, 2400) n`),
  },
  {
    name: 'small tool calls of many tenants, which do not pay',
    table: 'zoo.clicks',
    column: 'metadata',
    create: `
      create table zoo.clicks (
        id bigint generated always as identity primary key, tenant_id uuid not null, metadata jsonb not null, created_at timestamptz not null);`,
    fill: query(`
      insert into zoo.clicks (tenant_id, metadata, created_at)
      select ${tenantOf('n % 400')},
             jsonb_build_object('tool_interactions', jsonb_build_array(jsonb_build_object('tool', 'click', 'x', n % 1000, 'y', n % 700))),
             timestamptz '2026-01-01' + n * interval '5 seconds'
        from generate_series(1, 6000) n`),
  },
  {
    name: 'logs as text, tenants with names, a key of two columns, which become stubs',
    table: 'zoo.logs',
    column: 'output',
    create: `
      create table zoo.logs (
        project text not null, run integer not null, tenant_id text not null, output text, finished_at timestamptz not null,
        primary key (project, run));`,
    fill: query(`
      insert into zoo.logs select 'project ' || n % 12, n, 'tenant ' || n % 6, ${proseSql('n', '(200 + n * 7 % 3000)')}, timestamptz '2026-01-01' + n * interval '2 minutes'
        from generate_series(1, 900) n`),
  },
  {
    name: 'files as bytea, of one tenant, which become null',
    table: 'zoo.files',
    column: 'content',
    attach: {
      sql: 'single_tenant => true, create_pointer_column => true',
      said: { single_tenant: true, create_pointer_column: true },
    },
    create: `
      create table zoo.files (
        id uuid primary key default gen_random_uuid(), name text not null, content bytea, created_at timestamptz not null);`,
    fill: query(`
      insert into zoo.files (name, content, created_at)
      select 'file ' || n, convert_to(${noiseSql('n', '(100 + n % 400)')}, 'UTF8'), timestamptz '2026-01-01' + n * interval '10 minutes'
        from generate_series(1, 800) n`),
  },
]
