import { type Command, Option } from 'commander'
import type pg from 'pg'
import { loadDatabaseUrl } from '../config.ts'
import { requireCurrentSchema } from '../db/migrate.ts'
import { createPool } from '../db/pool.ts'
import { LighterError } from '../errors.ts'
import { withAdminClient } from './admin-client.ts'
import { wholeNumber } from './options.ts'
import { formatBytes, formatCount, print, printJson, renderTable } from './output.ts'
import { withTenant } from './tenant-argument.ts'

export function addRetention(program: Command): void {
  const retention = program.command('retention').description('what is kept for how long')
  addSet(retention)
  addUnset(retention)
  addList(retention)
  retention
    .command('explain')
    .description('which policy holds for a tenant, and why')
    .requiredOption('--tenant <tenant>', 'the tenant: its uuid, or its name')
    .requiredOption('--kind <kind>', 'the kind of artifact')
    .option('--json', 'print one JSON object')
    .action(async (given: { tenant: string; kind: string; json?: boolean }) => {
      const pool = createPool(loadDatabaseUrl(process.env), 1, () => undefined)
      try {
        await requireCurrentSchema(pool)
        const options = await withTenant(pool, given)
        const { rows } = await pool.query<{
          plan: string
          hold: boolean
          policy_id: number | null
          keep_days: number | null
          policy: string | null
          candidates: { id: number; policy: string }[]
          due: number
        }>(
          `select coalesce(t.plan, 'standard') as plan, coalesce(t.legal_hold, false) as hold,
                  p.policy_id, p.keep_days, p.policy,
                  (select count(*)::int from public.artifact_refs a
                    where a.tenant_id = $1 and a.kind = $2 and a.deleted_at is null
                      and a.created_at < now() - make_interval(days => p.keep_days)) as due
             from (select) x
             left join lighter.tenants t on t.tenant_id = $1
             left join lateral lighter.retention_policy_of($1, $2) p on true`,
          [options.tenant, options.kind],
        )
        const [row] = rows
        if (row === undefined) throw new Error('the query answered no row')
        if (options.json) {
          printJson({ tenant: options.tenant, kind: options.kind, ...row })
          return
        }
        print(
          `tenant ${options.tenant}: ${row.plan} plan${row.hold ? ', on legal hold: nothing expires' : ''}`,
        )
        print(
          row.policy_id === null
            ? `kind ${options.kind}: no policy, kept for ever`
            : `kind ${options.kind}: policy ${row.policy_id} (${row.policy}) holds, as the most specific: tenant before plan, kind before none`,
        )
        if (!row.hold && row.keep_days !== null) print(`${row.due} artifact(s) are past it now`)
      } finally {
        await pool.end()
      }
    })
}

interface PolicyOptions {
  plan?: string
  tenant?: string
  kind?: string
  json?: boolean
}

interface SetOptions extends PolicyOptions {
  days?: number
  forever?: boolean
}

const planOption = () =>
  new Option('--plan <plan>', 'of the tenants of a plan').choices(['standard', 'premium']).conflicts('tenant')

function addSet(retention: Command): void {
  retention
    .command('set')
    .description('set how long artifacts are kept; whoever sets nothing keeps everything')
    .addOption(planOption())
    .option('--tenant <tenant>', 'of one tenant: its uuid, or its name')
    .option('--kind <kind>', 'of one kind')
    .addOption(
      new Option('--days <n>', 'days after they were stored').argParser(wholeNumber).conflicts('forever'),
    )
    .option('--forever', 'keep them for ever')
    .option('--json', 'print one JSON object')
    .action(async (options: SetOptions) => {
      if (options.days === undefined && options.forever !== true) {
        throw new LighterError('retention_missing', 'how long was not said', {
          hint: 'Pass --days <n> or --forever.',
        })
      }
      if (options.days !== undefined && (options.days < 1 || options.days > 1_000_000)) {
        throw new LighterError('retention_invalid', `--days ${options.days} is not between 1 and 1000000`, {
          hint: 'To keep for ever: --forever',
        })
      }
      const { policy, due } = await withAdminClient(async client => {
        await requireCurrentSchema(client)
        const { tenant } = await withTenant(client, options)
        const { rows } = await client.query<{ policy: string }>(
          `insert into lighter.retention_policies (plan, tenant_id, kind, keep_days) values ($1, $2, $3, $4)
               on conflict (plan, tenant_id, kind) do update set keep_days = excluded.keep_days
           returning ${describeSql}`,
          [options.plan ?? null, tenant ?? null, options.kind ?? null, options.days ?? null],
        )
        return { policy: rows[0]?.policy ?? '', due: await whatIsDue(client) }
      })
      if (options.json) printJson({ policy, due })
      else {
        print(`set: ${policy}`)
        if (due.artifacts > 0)
          print(
            `the next retention sweep lets ${formatCount(due.artifacts)} artifact(s) expire, ${formatBytes(due.payload_bytes)}; see: lighter sweep retention --dry-run`,
          )
      }
    })
}

function addUnset(retention: Command): void {
  retention
    .command('unset')
    .description('remove a policy; what holds then is the next less specific one, or for ever')
    .addOption(planOption())
    .option('--tenant <tenant>', 'of one tenant: its uuid, or its name')
    .option('--kind <kind>', 'of one kind')
    .option('--json', 'print one JSON object')
    .action(async (options: PolicyOptions) => {
      const removed = await withAdminClient(async client => {
        await requireCurrentSchema(client)
        const { tenant } = await withTenant(client, options)
        const { rows } = await client.query<{ policy: string }>(
          `delete from lighter.retention_policies
            where plan is not distinct from $1 and tenant_id is not distinct from $2::uuid and kind is not distinct from $3
          returning ${describeSql}`,
          [options.plan ?? null, tenant ?? null, options.kind ?? null],
        )
        return rows[0]?.policy ?? null
      })
      if (options.json) printJson({ removed })
      else print(removed === null ? 'there was no such policy' : `removed: ${removed}`)
    })
}

function addList(retention: Command): void {
  retention
    .command('list')
    .description(
      'the policies; of several that fit the most specific holds: tenant before plan, kind before none',
    )
    .option('--json', 'print one JSON object')
    .action(async (options: { json?: boolean }) => {
      const policies = await withAdminClient(async client => {
        await requireCurrentSchema(client)
        const { rows } = await client.query<{
          plan: string | null
          tenant_id: string | null
          kind: string | null
          keep_days: number | null
        }>(
          `select plan, tenant_id, kind, keep_days from lighter.retention_policies
            order by plan nulls last, tenant_id, kind nulls first limit 10000`,
        )
        return rows
      })
      if (options.json) printJson({ policies })
      else
        print(
          renderTable(
            ['plan', 'tenant', 'kind', 'kept'],
            policies.map(p => [
              p.plan ?? 'any',
              p.tenant_id ?? 'any',
              p.kind ?? 'any',
              p.keep_days === null ? 'for ever' : `${p.keep_days} days`,
            ]),
          ),
        )
    })
}

const describeSql = `concat_ws(', ', coalesce('tenant ' || tenant_id, plan || ' plan', 'every tenant'), 'kind ' || kind,
  coalesce(keep_days || ' days', 'kept for ever')) as policy`

async function whatIsDue(client: pg.Client): Promise<{ artifacts: number; payload_bytes: number }> {
  const { rows } = await client.query<{ artifacts: number; payload_bytes: number }>(
    `select coalesce(sum(artifacts), 0)::float8 as artifacts, coalesce(sum(payload_bytes), 0)::float8 as payload_bytes
       from lighter.retention_due`,
  )
  return rows[0] ?? { artifacts: 0, payload_bytes: 0 }
}
