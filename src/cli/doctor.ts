import { styleText } from 'node:util'
import type { Command } from 'commander'
import { type Check, runChecks } from '../doctor/checks.ts'
import { print, printJson } from './output.ts'

const marks = {
  ok: styleText('green', 'ok  '),
  warn: styleText('yellow', 'warn'),
  fail: styleText('red', 'FAIL'),
  skip: 'skip',
}

export function addDoctor(program: Command): void {
  program
    .command('doctor')
    .description(
      'check configuration, database, triggers, LISTEN and bucket; exit status 1 if something fails',
    )
    .option('--write', 'also write, read and delete an object in the bucket')
    .option('--json', 'print one JSON object')
    .addHelpText('after', '\nExit status: 1 when a check fails; a warning is none.')
    .action(async (options: { write?: boolean; json?: boolean }) => {
      const checks: Check[] = []
      for await (const check of runChecks(process.env, { write: options.write ?? false })) {
        checks.push(check)
        if (options.json) continue
        print(`${marks[check.status]}  ${check.name}: ${check.found}`)
        if (check.advice !== undefined) print(`      → ${check.advice}`)
      }
      const failed = checks.filter(check => check.status === 'fail').length
      const warned = checks.filter(check => check.status === 'warn').length
      if (options.json) printJson({ ok: failed === 0, warnings: warned, checks })
      else if (failed > 0) print(`${failed} check(s) failed`)
      else print(warned > 0 ? `${warned} warning(s): see above` : 'all is well')
      if (failed > 0) process.exitCode = 1
    })
}
