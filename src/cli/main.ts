#!/usr/bin/env node
// The command `lighter`: one file per command, this one dispatches and renders what went wrong.
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { Command } from 'commander'
import { addAdopt } from './adopt.ts'
import { addAttach, addDetach } from './attach.ts'
import { addDev } from './dev.ts'
import { addDoctor } from './doctor.ts'
import { addHydrate } from './hydrate.ts'
import { addMigrate } from './migrate.ts'
import { renderError } from './output.ts'
import { addRetry } from './retry.ts'
import { addStart } from './start.ts'

const manifest: { version: string; description: string } = JSON.parse(
  readFileSync(path.join(import.meta.dirname, '..', '..', 'package.json'), 'utf8'),
)

const program = new Command('lighter')
  .description(manifest.description)
  .version(manifest.version)
  .option('--env-file <file>', 'read variables from a file such as .env; those already set win')
  .showHelpAfterError('(lighter --help, or lighter <command> --help)')
  .hook('preAction', command => {
    const file: unknown = command.opts().envFile
    if (typeof file === 'string') process.loadEnvFile(file)
  })

addDev(program)
addStart(program)
addMigrate(program)
addAttach(program)
addDetach(program)
addHydrate(program)
addRetry(program)
addDoctor(program)
addAdopt(program)

try {
  await program.parseAsync()
} catch (error) {
  process.stderr.write(`${renderError(error)}\n`)
  process.exitCode = 1
}
