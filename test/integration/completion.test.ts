// What shells complete, asked of the shells themselves. zsh and fish where they are installed.
import { execFile, spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'

const cli = path.join(import.meta.dirname, '../../src/cli/main.ts')
const has = (shell: string) => spawnSync(shell, ['--version']).status === 0
const dir = mkdtempSync(path.join(tmpdir(), 'pg-lighter-completion-'))
const run = promisify(execFile)
writeFileSync(path.join(dir, 'settings.env'), '')

beforeAll(async () => {
  for (const shell of ['bash', 'zsh', 'fish']) {
    const { stdout } = await run(process.execPath, [cli, 'completion', shell])
    writeFileSync(path.join(dir, shell), stdout)
  }
})
afterAll(() => rmSync(dir, { recursive: true }))

/** What is offered for the last of the words. */
type Complete = (words: string[]) => Promise<string[]>

const inBash: Complete = async words => {
  const { stdout } = await run('bash', [
    '--norc',
    '-c',
    `source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _lighter; printf "%s\\n" "\${COMPREPLY[@]}"`,
    'bash',
    path.join(dir, 'bash'),
    ...words,
  ])
  return stdout.split('\n').filter(line => line !== '')
}

const inFish: Complete = async words => {
  const { stdout } = await run('fish', [
    '--no-config',
    '-c',
    'source $argv[1]; complete -C $argv[2]',
    path.join(dir, 'fish'),
    words.join(' '),
  ])
  return stdout.split('\n').flatMap(line => (line === '' ? [] : (line.split('\t')[0] ?? '')))
}

/** In a terminal of its own: the completion system answers nobody else. The line, as Tab has left it. */
async function tabInZsh(line: string): Promise<string> {
  const program = `
    zmodload zsh/zpty
    zpty shell zsh -f
    zpty -w shell "PS1=; unsetopt zle_bracketed_paste; autoload -U compinit; compinit -u -D; source $1/zsh"
    zpty -w shell "finish() { print -r -- \\"[\\$BUFFER]\\"; exit }; zle -N finish; bindkey '^X' finish; echo READ''Y"
    zpty -r shell out '*READY*'
    zpty -w -n shell "$2"$'\\t\\C-x'
    zpty -r shell out '*\\[*\\]*'
    print -r -- "$out"`
  const { stdout } = await run('zsh', ['-f', '-c', program, 'zsh', dir, line], { timeout: 30_000 })
  return /.*\[(lighter[^\]]*)\]/s.exec(stdout)?.[1] ?? stdout
}

describe.each([
  { shell: 'bash', complete: inBash },
  { shell: 'fish', complete: inFish },
])('$shell', ({ shell, complete }) => {
  const there = has(shell)

  test.runIf(there)('completes commands, and those within a command', async () => {
    expect((await complete(['lighter', 're'])).sort()).toEqual(['reclaim', 'restore', 'retention', 'retry'])
    expect(await complete(['lighter', 'retention', 'e'])).toEqual(['explain'])
  })

  test.runIf(there)('completes the options of a command, and no others', async () => {
    expect((await complete(['lighter', 'retry', '--'])).sort()).toEqual(
      ['--dry-run', '--help', '--json', '--row', '--table'].sort(),
    )
    expect(await complete(['lighter', 'retention', 'explain', '--k'])).toEqual(['--kind'])
  })

  test.runIf(there)('completes an argument of which there are few', async () => {
    expect(await complete(['lighter', 'sweep', 'ver'])).toEqual(['verify'])
    expect(await complete(['lighter', 'completion', 'f'])).toEqual(['fish'])
  })

  test.runIf(there)('takes the value of an option for no command', async () => {
    expect(await complete(['lighter', '--env-file', 'demo', 'sweep', 'ver'])).toEqual(['verify'])
    expect(await complete(['lighter', 'retry', '--table', 'demo', '--dr'])).toEqual(['--dry-run'])
    expect(await complete(['lighter', 'retry', '--table', 're'])).toEqual([])
  })

  test.runIf(there)('completes files where a file is meant', async () => {
    expect(await complete(['lighter', '--env-file', `${dir}/set`])).toEqual([`${dir}/settings.env`])
  })
})

describe('zsh', () => {
  test.runIf(has('zsh'))('completes commands, options and arguments', async () => {
    expect(await tabInZsh('lighter retention exp')).toBe('lighter retention explain ')
    expect(await tabInZsh('lighter --env-file demo sweep ver')).toBe('lighter --env-file demo sweep verify ')
    expect(await tabInZsh('lighter retry --ro')).toBe('lighter retry --row ')
    expect(await tabInZsh(`lighter --env-file ${dir}/set`)).toBe(`lighter --env-file ${dir}/settings.env `)
  })
})

test('no other shell is promised', async () => {
  await expect(run(process.execPath, [cli, 'completion', 'tcsh'])).rejects.toThrow(
    'Allowed choices are bash, zsh, fish',
  )
})
