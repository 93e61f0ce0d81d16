// What a reader copies: each command of the documents fits the definitions of the commands, or is named here with the
// reason why it is not tried.
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { CommanderError } from 'commander'
import { describe, expect, test } from 'vitest'
import { createProgram } from '../../src/cli/program.ts'
import { loadConfig } from '../../src/config.ts'
import { blocksOf, documents, readDocument } from '../support/doc-blocks.ts'

const manifest: { scripts: Record<string, string> } = JSON.parse(
  readFileSync(path.join(import.meta.dirname, '../../package.json'), 'utf8'),
)

/** Programs that are not ours, and why no test runs them. */
const others: Record<string, string> = {
  curl: 'asks a daemon that runs: test/integration/openapi.test.ts runs those of docs/api.md',
  psql: 'is not installed everywhere; the statements are run by test/integration/doc-statements.test.ts',
  zstd: 'is not installed everywhere; test/unit/pack.test.ts reads packs as plain zstd',
  zcat: 'is not installed everywhere; test/unit/pack.test.ts reads packs as plain gzip',
  head: 'is not ours',
  tail: 'is not ours',
  sha256sum: 'is not ours',
  wc: 'is not ours',
  grep: 'is not ours',
  printf: 'is the shell itself',
  docker: 'needs Docker',
  kubectl: 'needs a cluster',
  'deploy/compose/generate-env': 'is run by test/unit/compose.test.ts',
  helm: 'needs a cluster',
  doppler: 'needs an account',
  source: 'is the shell itself; test/integration/completion.test.ts does it',
  node: 'runs a file: those of the package are tried by test/integration/package.test.ts',
  cp: 'copies',
  cd: 'is the shell itself',
  git: 'is not ours',
  mkdir: 'is not ours',
  echo: 'is the shell itself',
  export: 'is the shell itself',
  openssl: 'makes a key',
}

/** A block as single commands: continued lines and quoted ones joined, comments left out. */
function commandLines(text: string): string[] {
  const commands: string[] = []
  let open = ''
  for (const line of text.replaceAll(/\\\n\s*/g, ' ').split('\n')) {
    open += open === '' ? line.replace(/(^|\s)#.*$/, '') : ` ${line}`
    if (hasOpenQuote(open)) continue
    commands.push(...open.split(/ (?:&&|\|\|?) /))
    open = ''
  }
  return commands.map(command => command.trim()).filter(command => command !== '')
}

const hasOpenQuote = (text: string) => /['"]/.test(text.replaceAll(/\\"|'[^']*'|"(?:\\.|[^"\\])*"/g, ''))

/** As a shell splits it. `<…>` stands for a value. */
function wordsOf(command: string): string[] {
  const filled = command
    .replace('sweep <name>', 'sweep verify')
    .replaceAll(/<(\w+)>/g, '00000000-0000-7000-8000-000000000000')
    .replaceAll(/<[^>]*>/g, '1')
    .replaceAll('…', '1')
  return [...filled.matchAll(/'([^']*)'|"([^"]*)"|(\S+)/g)].map(
    ([, single, double, plain]) => single ?? double ?? plain ?? '',
  )
}

/** The arguments of ours, if the command is `lighter` in one of the ways in which it is called. */
function ownArguments(words: string[]): string[] | undefined {
  const [first, ...rest] = words
  if (first === 'lighter' || first === 'pg-lighter') return rest
  if (first === 'npx') {
    const args = [...rest]
    while (args[0] === '-p') args.splice(0, 2)
    return args[0] === 'lighter' || args[0] === 'pg-lighter' ? args.slice(1) : undefined
  }
  if (first === 'npm' && rest[0] === 'run' && rest[1] === 'lighter')
    return rest.slice(rest[2] === '--' ? 3 : 2)
  if (first === 'npm' && rest[0] === 'run' && /^(demo|dev)$/.test(rest[1] ?? ''))
    return [rest[1] ?? '', ...rest.slice(rest[2] === '--' ? 3 : 2)]
  return undefined
}

/** @throws {CommanderError} they do not fit */
async function parse(args: string[]): Promise<void> {
  const program = createProgram()
  const commands = [program]
  for (const command of commands) {
    commands.push(...command.commands)
    command.exitOverride().configureOutput({ writeOut: () => undefined, writeErr: () => undefined })
    if (command.commands.length === 0) command.action(() => undefined)
  }
  // The file is the reader's.
  const at = args.indexOf('--env-file')
  const given = at === -1 ? args : args.toSpliced(at, 2)
  try {
    await program.parseAsync(given, { from: 'user' })
  } catch (error) {
    if (error instanceof CommanderError && error.exitCode === 0) return // --help, --version
    throw error
  }
}

describe.each(documents())('%s', name => {
  const markdown = readDocument(name)

  test('has commands that are ours and parse, or are known', async () => {
    for (const { text, line } of blocksOf(markdown).filter(block => block.info === 'sh')) {
      for (const command of commandLines(text)) {
        const words = wordsOf(command)
        const where = `${name}:${line}: ${command}`
        const own = ownArguments(words)
        if (own !== undefined) {
          await parse(own).catch(error => expect.fail(`${where}: ${error.message}`))
          continue
        }
        const [program = '', ...rest] = words
        if (program === 'npm' || program === 'npx') {
          const script = rest[0] === 'run' ? rest[1] : rest[0]
          const known = ['ci', 'install', 'pack', 'vitest', 'publish', 'version'].includes(script ?? '')
          expect(known || (script ?? '') in manifest.scripts, where).toBe(true)
        } else if (!/^[A-Z][A-Z0-9_]*=/.test(program)) expect(Object.keys(others), where).toContain(program)
      }
    }
  })

  test('has in its sentences no command or option that is not there', async () => {
    const text = markdown.replaceAll(/^( *)```[\s\S]*?^\1```/gm, '')
    for (const [, command = ''] of text.matchAll(/`(lighter(?: [^`]+))`/g)) {
      // Arguments may be left out where it is only spoken of.
      await parse(wordsOf(command).slice(1)).catch(error => {
        if (!/[mM]issingArgument|missingMandatoryOptionValue|commander\.help$/.test(error.code))
          expect.fail(`${name}: ${command}: ${error.message}`)
      })
    }
  })

  test('has settings that are taken', () => {
    for (const { text } of blocksOf(markdown).filter(block => block.info === 'sh env')) {
      const lines = text.trim().split('\n')
      const env = Object.fromEntries(
        lines.map(line => {
          const [variable = '', ...value] = line.replace(/\s+#.*$/, '').split('=')
          return [variable, value.join('=').replaceAll('<ref>', 'abcdefghijklmnopqrst').replaceAll('…', 'x')]
        }),
      )
      loadConfig({
        DATABASE_URL: 'postgresql:///db',
        R2_ACCOUNT_ID: 'a',
        R2_ACCESS_KEY_ID: 'k',
        R2_SECRET_ACCESS_KEY: 's',
        R2_BUCKET: 'b',
        JWT_SECRET: env.AUTH_MODE === 'jwt' && env.JWT_JWKS_URL === undefined ? 'x'.repeat(32) : undefined,
        ...env,
      })
    }
  })
})

test('an option that is not there is found', async () => {
  await expect(parse(['sweep', 'verify', '--everything'])).rejects.toThrow("unknown option '--everything'")
  await expect(parse(['sweep', 'everything'])).rejects.toThrow('Allowed choices')
  await expect(parse(['swep'])).rejects.toThrow("unknown command 'swep'")
})
