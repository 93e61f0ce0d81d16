// pg_dump and pg_restore of everything: what comes back is what was there, and each row hydrates to what it was.
import { execFile } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import path from 'node:path'
import { promisify } from 'node:util'
import pg from 'pg'
import { expect, onTestFinished, test } from 'vitest'
import { compareCatalogue } from '../../src/db/catalogue.ts'
import {
  asJsonbText,
  drained,
  environmentOn,
  hydratedMany,
  insertMessage,
  newConversation,
  startDaemon,
  type TestEnvironment,
} from '../support/environment.ts'
import { environmentOnOwnServer, temporaryDir } from '../support/own-server.ts'
import { column } from '../support/sql.ts'
import { age, runNow } from '../support/sweep.ts'
import { findSystemPostgres, noSystemPostgres, startSystemPostgres } from '../support/system-postgres.ts'

const run = promisify(execFile)
const programs = await findSystemPostgres()
if (programs === null) process.stderr.write(`dump.test.ts is skipped: ${noSystemPostgres}\n`)

const heavy = (note: string) =>
  JSON.stringify({ note, tool_interactions: [{ call: note }], trace: 'x'.repeat(9000) })

/** Without what pg_dump says of itself. */
const schemaOf = async (url: string) => {
  const { stdout } = await run(path.join(programs ?? '', 'pg_dump'), ['--schema-only', url], {
    maxBuffer: 64 * 1024 * 1024,
  })
  return stdout.replaceAll(/^\\(un)?restrict .*$/gm, '')
}

const differences = async ({ admin }: TestEnvironment) =>
  (await compareCatalogue(admin)).map(d => [d.object, d.found])

/** Every table's rows, and what is derived from them, as text. */
async function contents({ admin }: TestEnvironment): Promise<Record<string, unknown>> {
  const { rows } = await admin.query<{ name: string }>(
    `select format('%I.%I', n.nspname, c.relname) as name
       from pg_class c join pg_namespace n on n.oid = c.relnamespace
      where n.nspname in ('public', 'lighter') and c.relkind in ('r', 'p')
      union all values ('public.artifact_refs'), ('lighter.storage_by_tenant')
      order by 1`,
  )
  const found: Record<string, unknown> = {}
  for (const { name } of rows) {
    found[name] = await column(admin, `select t::text from ${name} t order by t::text`)
  }
  return found
}

test.skipIf(programs === null)(
  'a database that was dumped and restored is the same',
  { timeout: 120_000 },
  async () => {
    if (programs === null) return
    const server = await startSystemPostgres(programs)
    const { environment, servers } = await environmentOnOwnServer(server)
    onTestFinished(() => environment.close())
    const daemon = await startDaemon(environment)
    onTestFinished(async () => void (await daemon.stop()))
    const { conversationId, tenantId } = await newConversation(environment)
    const texts = new Map<string, string>()
    for (let n = 0; n < 30; n++) {
      texts.set(await insertMessage(environment, conversationId, heavy(`row ${n}`)), heavy(`row ${n}`))
    }
    await drained(environment)
    const ids = [...texts.keys()]
    // Some of it released, some with tombstones, some purged, one that the application deleted, and one of its own.
    await environment.app.query('delete from conversation_messages where id = any ($1)', [ids.splice(0, 6)])
    await age(environment, '2 hours')
    await runNow(environment, 'release')
    await environment.admin.query(
      `update artifact_refs set deleted_at = now() - interval '30 days', deleted_reason = 'deleted'
      where id in (select id from artifact_refs where released_at is not null order by id limit 6)`,
    )
    await runNow(environment, 'retention')
    await environment.admin.query(
      'delete from artifact_refs where id in (select id from artifact_refs where released_at is not null and deleted_at is null limit 1)',
    )
    await environment.admin.query(
      `insert into artifact_refs (id, tenant_id, kind, r2_key) values ($1, $2, 'own', 'tenants/own')`,
      [randomUUID(), tenantId],
    )
    await environment.admin.query(`insert into lighter.tenants (tenant_id, legal_hold) values ($1, true)`, [
      tenantId,
    ])
    await runNow(environment, 'rollup')
    await daemon.stop()

    const file = path.join(await temporaryDir('dump'), 'database.dump')
    await run(path.join(programs, 'pg_dump'), ['--format=custom', '--file', file, environment.urls.admin])
    const name = `restored_${randomUUID().replaceAll('-', '')}`
    const admin = new pg.Client({ connectionString: server.url() })
    await admin.connect()
    await admin.query(`create database ${name} template template0`)
    await admin.end()
    const restored = environmentOn(servers, name)
    onTestFinished(() => restored.close())
    await run(path.join(programs, 'pg_restore'), ['--exit-on-error', '--dbname', restored.urls.admin, file])

    expect(await contents(restored)).toEqual(await contents(environment))
    // What Postgres writes in another way once it has read it again, doctor would take for a change.
    expect(await schemaOf(restored.urls.admin)).toBe(await schemaOf(environment.urls.admin))
    expect(await differences(restored)).toEqual([])
    // The bucket is the same.
    const read = await hydratedMany({ ...restored, store: environment.store }, ids)
    for (const [n, id] of ids.entries()) {
      expect(read[n]).toBe(await asJsonbText(environment, texts.get(id) ?? ''))
    }
    // Its functions and triggers are there, and work: the sums of what is deleted now.
    for (const each of [restored, environment]) {
      await each.admin.query(
        `update artifact_refs set deleted_at = '2026-01-01' where id = (select min(id::text)::uuid from artifact_refs where deleted_at is null and ordinal is not null)`,
      )
    }
    expect(await contents(restored)).toEqual(await contents(environment))
  },
)
