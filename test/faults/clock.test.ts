// A daemon whose clock is an hour ahead of, or behind, the database's and everybody else's.
import { randomUUID } from 'node:crypto'
import path from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { newArtifactId } from '../../src/ids.ts'
import {
  drained,
  hydrated,
  insertMessage,
  newConversation,
  startDaemon,
  until,
  useFreshEnvironment,
} from '../support/environment.ts'
import { bucketMismatches, strayArtifacts } from '../support/invariants.ts'
import { type RunningCli, runCli, startCli } from '../support/process.ts'
import { emptyQueue, leaseRows } from '../support/queue.ts'
import { type FaultyStore, startFaultyStore } from '../support/request-fault.ts'
import { value } from '../support/sql.ts'
import { secretToken } from '../support/tokens.ts'

const environment = useFreshEnvironment()
/** In front of the simulator, which does not tell the time with its answers, as R2's own front does. */
let store: FaultyStore
beforeEach(async () => {
  store = await startFaultyStore(environment.config().store.endpoint)
})
afterEach(() => store.close())

const hourMs = 3_600_000
const secret = 's'.repeat(40)

describe.for([
  { name: 'ahead', shiftMs: hourMs },
  { name: 'behind', shiftMs: -hourMs },
])('an hour $name', ({ shiftMs }) => {
  const shifted = () => ({
    ...environment.env,
    R2_ENDPOINT: store.endpoint,
    LOG_LEVEL: 'info',
    NODE_OPTIONS: `--import=${path.join(import.meta.dirname, '..', 'support', 'shift-clock.ts')}`,
    CLOCK_SHIFT_MS: String(shiftMs),
  })

  async function started(env: Record<string, string> = {}): Promise<RunningCli> {
    const daemon = startCli(['start'], { env: { ...shifted(), ...env } })
    await daemon.says('daemon started')
    return daemon
  }

  test('the daemon says so, and shares the work with one whose clock is right', async () => {
    const wrong = await started({ OFFLOAD_BATCH_ROWS: '3' })
    expect(wrong.logged()).toContainEqual(
      expect.objectContaining({ msg: "this machine's clock is not the database's" }),
    )
    const skewMs = Number(wrong.logged().find(line => 'skewMs' in line)?.skewMs)
    expect(Math.abs(skewMs - shiftMs)).toBeLessThan(60_000)
    const right = await startDaemon(environment, { env: { OFFLOAD_BATCH_ROWS: '3' } })
    const { conversationId } = await newConversation(environment)
    const ids: string[] = []
    for (let n = 0; n < 60; n++)
      ids.push(await insertMessage(environment, conversationId, `{"tool_interactions": [${n}]}`))
    await drained(environment)
    await right.stop()
    for (const [n, id] of ids.entries())
      expect(await hydrated(environment, id)).toBe(`{"tool_interactions": [${n}]}`)
    const { rows } = await environment.admin.query('select count(*)::int as n from artifact_refs')
    expect(rows[0].n, 'no row was done twice').toBe(60)
    expect(await strayArtifacts(environment)).toEqual([])
    expect(await bucketMismatches(environment)).toEqual({ unregistered: [], missing: [] })
    wrong.signal('SIGTERM')
    expect((await wrong.ended).code).toBe(0)
  })

  test('a lease that another holds is left alone, one that has run out is taken', async () => {
    const { conversationId } = await newConversation(environment)
    const held = await insertMessage(environment, conversationId, '{"tool_interactions": ["held"]}')
    const over = await insertMessage(environment, conversationId, '{"tool_interactions": ["over"]}')
    const sourceId = await value<number>(environment.admin, 'select id from lighter.sources')
    await emptyQueue(environment)
    await leaseRows(environment.admin, sourceId, [held], { leaseMs: 30 * 60_000 })
    await leaseRows(environment.admin, sourceId, [over], { leaseMs: -30_000 })
    // One that waits for half an hour yet, and one that has waited.
    const [later, due] = [
      await insertMessage(environment, conversationId, '{"tool_interactions": ["later"]}'),
      await insertMessage(environment, conversationId, '{"tool_interactions": ["due"]}'),
    ]
    await environment.admin.query('delete from lighter.inbox')
    await environment.admin.query(
      `insert into lighter.waiting (source_id, row_id, available_at)
       values ($1, $2, now() + interval '30 minutes'), ($1, $3, now() - interval '30 seconds')`,
      [sourceId, later, due],
    )
    await started()
    await until(async () => {
      const { rows } = await environment.admin.query<{ id: string }>(
        'select row_id as id from lighter.jobs order by place',
      )
      return rows.length === 2 && rows[0]?.id === held && rows[1]?.id === later
    }, 'only the one that is held, and the one that waits, are left')
  })

  test('sweeps take what is due by the clock of the database, neither sooner nor later', async () => {
    const tenantId = randomUUID()
    const key = () => `${environment.store.prefix}tenants/${tenantId}/k/2026/01/01/${randomUUID()}.json`
    const object = async (state: string, lease: string | null, due: string | null) => {
      const name = key()
      await environment.store.put(name, Buffer.from('{}'), { contentType: 'application/json' })
      await environment.admin.query(
        `insert into lighter.objects (tenant_id, r2_key, kind, state, content_type, artifact_count, byte_length, lease_until, delete_after, stored_at)
         values ($1, $2, 'k', $3, 'application/json', 1, 2, now() + $4::interval, now() + $5::interval, now())`,
        [tenantId, name, state, lease, due],
      )
      return name
    }
    const artifact = async (expires: string) => {
      const id = newArtifactId()
      const r2Key = await object('stored', null, null)
      await environment.admin.query(
        `insert into artifact_refs (id, tenant_id, kind, r2_key, size_bytes, sha256, expires_at) values ($1, $2, 'k', $3, 2, 'x', now() + $4::interval)`,
        [id, tenantId, r2Key, expires],
      )
      return id
    }
    const uploading = await object('uploading', '30 minutes', null)
    const orphan = await object('uploading', '-30 seconds', null)
    const leaving = await object('deleting', null, '30 minutes')
    const due = await object('deleting', null, '-30 seconds')
    const [kept, expired] = [await artifact('30 minutes'), await artifact('-30 seconds')]
    for (const name of ['orphans', 'retention']) {
      const { code, stderr } = await runCli(['sweep', name], { env: shifted() })
      expect({ name, code, stderr }).toMatchObject({ code: 0 })
    }
    const { rows } = await environment.admin.query<{ key: string; state: string; deleted: boolean }>(
      'select r2_key as key, state, first_deleted_at is not null as deleted from lighter.objects',
    )
    const found = new Map(rows.map(row => [row.key, `${row.state}${row.deleted ? ', deleted' : ''}`]))
    expect({
      uploading: found.get(uploading),
      // Two hours from now, by the database's clock.
      orphan: found.get(orphan),
      leaving: found.get(leaving),
      due: found.get(due),
    }).toEqual({
      uploading: 'uploading',
      orphan: 'deleting',
      leaving: 'deleting',
      due: 'deleting, deleted',
    })
    expect(await environment.store.head(orphan)).not.toBeNull()
    const artifacts = await environment.admin.query<{ id: string; deleted: boolean }>(
      'select id, deleted_at is not null as deleted from artifact_refs',
    )
    expect(new Map(artifacts.rows.map(row => [row.id, row.deleted]))).toEqual(
      new Map([
        [kept, false],
        [expired, true],
      ]),
    )
  })

  test.for(['zstd', 'none'])(
    'URLs that the daemon signs are good (%s); tokens are judged by its clock',
    async codec => {
      // Codec none: the store itself serves what is asked for by URL.
      const api = await started({ AUTH_MODE: 'jwt', JWT_SECRET: secret, OFFLOAD_CODEC: codec })
      await api.says('the HTTP API listens')
      const url = String(api.logged().find(line => line.msg === 'the HTTP API listens')?.address)
      const tenantId = randomUUID()
      const call = (token: string, pathname: string, init: RequestInit = {}) =>
        fetch(`${url}${pathname}`, {
          ...init,
          headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' },
        })
      const seconds = shiftMs / 1000
      const now = Math.floor(Date.now() / 1000)
      const good = secretToken(secret, { tenant_id: tenantId, exp: now + seconds + 300 })
      const answer = await call(good, '/api/storage/artifacts', {
        method: 'POST',
        body: JSON.stringify({ kind: 'agent_trace', payload: { a: 'x'.repeat(5000) } }),
      })
      expect(answer.status).toBe(201)
      const { id } = JSON.parse(await answer.text()).artifact
      const signed = JSON.parse(
        await (await call(good, `/api/storage/artifacts/${id}/url?expires_in=60`)).text(),
      )
      expect(signed.served_by).toBe(codec === 'none' ? 'store' : 'api')
      const read = await fetch(signed.url)
      expect(read.status, signed.url).toBe(200)
      // What is good by everybody else's clock for ten minutes more: too old for a clock that is ahead.
      const others = await call(
        secretToken(secret, { tenant_id: tenantId, exp: now + 600 }),
        '/api/storage/artifacts',
      )
      expect(others.status).toBe(shiftMs > 0 ? 401 : 200)
    },
  )
})
