import path from 'node:path'
import type { Command } from 'commander'
import { pino } from 'pino'
import { loadConfig, secretVariables } from '../config.ts'
import { withAdminClient } from './admin-client.ts'
import { print } from './output.ts'
import { runUntilSignal } from './run-until-signal.ts'

export function addDev(program: Command): void {
  program
    .command('dev')
    .description(
      'run everything on this machine: Postgres, R2 and the daemon, with example tables; state is kept',
    )
    .option('--dir <dir>', 'where state is kept', '.lighter')
    .action(async (options: { dir: string }) => {
      const { createDaemon } = await import('../daemon.ts')
      const { startEmbedded } = await import('../embedded/index.ts')
      const { prepareEmbeddedDatabase } = await import('../embedded/prepare.ts')
      const embedded = await startEmbedded({ dir: path.resolve(options.dir) })
      try {
        const urls = await withAdminClient(
          client =>
            prepareEmbeddedDatabase(client, embedded.postgres, 'lighter_dev', { withExampleTables: true }),
          embedded.postgres.url({ database: 'postgres' }),
        )
        const env = {
          DATABASE_URL: urls.daemon,
          ADMIN_DATABASE_URL: urls.admin,
          R2_ENDPOINT: embedded.r2.endpoint,
          R2_BUCKET: embedded.r2.bucket,
          R2_ACCESS_KEY_ID: embedded.r2.accessKeyId,
          R2_SECRET_ACCESS_KEY: embedded.r2.secretAccessKey,
          AUTH_MODE: 'dev',
        }
        print('Postgres and R2 are running. For psql, your application, or another lighter command:')
        for (const [name, value] of Object.entries(env)) print(`  export ${name}='${value}'`)
        print('The HTTP API, which believes any x-tenant-id here, has its description at:')
        print(`  http://127.0.0.1:${process.env.API_PORT || 4001}/docs`)
        print('What it does can be watched at:')
        print(`  http://127.0.0.1:${process.env.API_PORT || 4001}/dashboard`)
        print('Write as an application does, and watch; Ctrl-C stops everything:')
        print(`  psql '${urls.application}' <<'SQL'`)
        print(`  with c as (insert into conversations (tenant_id) values (gen_random_uuid()) returning id)`)
        print(`  insert into conversation_messages (conversation_id, role, content, metadata)`)
        print(
          `  select id, 'assistant', 'Hello', '{"tool_interactions": [{"tool": "search"}]}' from c returning id;`,
        )
        print('  SQL')
        const config = loadConfig({ ...withoutConnections(process.env), ...env })
        // The API's check of the store looks at what is set.
        Object.assign(process.env, env)
        const log = pino({ level: config.logLevel, base: null, timestamp: pino.stdTimeFunctions.isoTime })
        await runUntilSignal(createDaemon({ config, log, api: true }), log, config.shutdownTimeoutMs)
      } finally {
        await embedded.stop()
      }
      process.exit()
    })
}

/** Settings of the environment count, but where it points to does not: nothing may reach another database. */
function withoutConnections(env: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  const kept = { ...env }
  for (const name of secretVariables) {
    delete kept[name]
    delete kept[`${name}_FILE`]
  }
  return kept
}
