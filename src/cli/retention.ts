import type { Command } from 'commander'
import { loadDatabaseUrl } from '../config.ts'
import { requireCurrentSchema } from '../db/migrate.ts'
import { createPool } from '../db/pool.ts'
import { LighterError } from '../errors.ts'
import { print, printJson } from './output.ts'

export function addRetention(program: Command): void {
  const retention = program.command('retention').description('what is kept for how long')
  retention
    .command('explain')
    .description('which policy holds for a tenant, and why')
    .requiredOption('--tenant <id>', 'the tenant')
    .requiredOption('--kind <kind>', 'the kind of artifact')
    .option('--json', 'print one JSON object')
    .action(async (options: { tenant: string; kind: string; json?: boolean }) => {
      if (!/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(options.tenant)) {
        throw new LighterError('invalid_tenant', `--tenant ${options.tenant} is not a uuid`, {
          hint: 'Tenants with artifacts: select tenant_id from lighter.storage_by_tenant;',
        })
      }
      const pool = createPool(loadDatabaseUrl(process.env), 1, () => undefined)
      try {
        await requireCurrentSchema(pool)
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
