// The command `lighter`: one file per command, this one puts them together and renders what went wrong.
import { readFileSync } from 'node:fs'
import { parseEnv } from 'node:util'
import { Command } from 'commander'
import { LighterError, messageOf } from '../errors.ts'
import { description, version } from '../version.ts'
import { addAdopt } from './adopt.ts'
import { addAttach, addDetach } from './attach.ts'
import { addBackfill } from './backfill.ts'
import { addCompletion } from './completion.ts'
import { addDemo } from './demo.ts'
import { addDev } from './dev.ts'
import { addDoctor } from './doctor.ts'
import { addErase } from './erase.ts'
import { addEstimate } from './estimate.ts'
import { addExport } from './export.ts'
import { addFlush } from './flush.ts'
import { addHydrate } from './hydrate.ts'
import { addMigrate } from './migrate.ts'
import { renderError } from './output.ts'
import { addReclaim } from './reclaim.ts'
import { addRestore, addUnpin } from './restore.ts'
import { addRetention } from './retention.ts'
import { addRetry } from './retry.ts'
import { addStart } from './start.ts'
import { addStats } from './stats.ts'
import { addStatus } from './status.ts'
import { addSweep } from './sweep.ts'

/**
 * Some editors begin a file with a byte-order mark, which would become part of the first name.
 *
 * An empty variable counts as unset, here as everywhere. (Node looks for `--env-file` among the arguments of a
 * program too. What it has loaded is loaded again here; where the file is missing, it ends before we begin.)
 */
function readEnvFile(file: string): void {
  let text: string
  try {
    text = readFileSync(file, 'utf8')
  } catch (cause) {
    throw new LighterError('env_file_unreadable', `--env-file ${file}: ${messageOf(cause)}`, {
      cause,
      hint: 'Copy .env.example, or name the file from the folder that you are in.',
    })
  }
  const kept: string[] = []
  for (const [name, value] of Object.entries(parseEnv(text.replace(/^\uFEFF/, '')))) {
    if ((process.env[name] ?? '') === '') process.env[name] = value
    else if (process.env[name] !== value) kept.push(name)
  }
  // Or what is meant for one database is done to another.
  if (kept.length > 0)
    process.stderr.write(
      `note: set otherwise in the environment, which wins over ${file}: ${kept.join(', ')}\n`,
    )
}

/**
 * All commands. Nothing is read or connected to before one of them is run, and what only the daemon needs (the HTTP
 * server, tracing) is loaded by the commands that run it.
 */
export function createProgram(): Command {
  const program = new Command('lighter')
    .description(description)
    .version(version)
    .option('--env-file <file>', 'read variables from a file such as .env; those already set win')
    .showHelpAfterError('(lighter --help, or lighter <command> --help)')
    .hook('preAction', command => {
      const file: unknown = command.opts().envFile
      if (typeof file === 'string') readEnvFile(file)
    })
  addDemo(program)
  addDev(program)
  addStart(program)
  addEstimate(program)
  addMigrate(program)
  addAttach(program)
  addDetach(program)
  addHydrate(program)
  addStatus(program)
  addFlush(program)
  addRetry(program)
  addBackfill(program)
  addReclaim(program)
  addRestore(program)
  addUnpin(program)
  addSweep(program)
  addRetention(program)
  addExport(program)
  addErase(program)
  addStats(program)
  addDoctor(program)
  addAdopt(program)
  addCompletion(program)
  return program
}

/** Runs what the arguments ask for. */
export async function runProgram(): Promise<void> {
  // `lighter hydrate … | head` closes the pipe while we write.
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') process.exit(0)
    throw error
  })
  try {
    await createProgram().parseAsync()
  } catch (error) {
    process.stderr.write(`${renderError(error)}\n`)
    process.exitCode = 1
  }
}
