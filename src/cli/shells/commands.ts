// The commands as a shell must know them, out of commander's definitions. The scripts made of them hold all words:
// a shell that asked us at every Tab would wait for Node to start, half a second.
import type { Command } from 'commander'

export interface CompletedOption {
  long: string
  /** As `V`, where there is one. */
  short: string | undefined
  description: string
  /** What comes after it. */
  value: 'none' | 'optional' | 'file' | 'word'
}

export interface CompletedCommand {
  /** Words after `lighter`; none for itself. */
  path: string
  /** The command that it is within, and its name there. */
  parent: string
  name: string
  subcommands: { name: string; description: string }[]
  options: CompletedOption[]
  /** What an argument may be, where only some words are allowed. */
  argumentChoices: string[]
}

/** The program and all its commands, each before those within it. */
export function readCommands(program: Command, parents: string[] = []): CompletedCommand[] {
  const help = program.createHelp()
  const subcommands = help.visibleCommands(program)
  const command: CompletedCommand = {
    path: parents.join(' '),
    parent: parents.slice(0, -1).join(' '),
    name: program.name(),
    subcommands: subcommands.map(sub => ({ name: sub.name(), description: sub.description() })),
    options: help.visibleOptions(program).map(option => ({
      long: option.long ?? option.flags,
      short: option.short?.slice(1),
      description: option.description,
      value: option.optional
        ? 'optional'
        : !option.required
          ? 'none'
          : /<(file|dir|where)>/.test(option.flags)
            ? 'file'
            : 'word',
    })),
    argumentChoices: program.registeredArguments.flatMap(argument => argument.argChoices ?? []),
  }
  // `help` is added by commander and has nothing of its own.
  const own = subcommands.filter(sub => sub.name() !== 'help')
  return [command, ...own.flatMap(sub => readCommands(sub, [...parents, sub.name()]))]
}

/** How a script tells that a word is a command where it stands: `retention/explain`, `/demo`. */
export function stepsOf(commands: CompletedCommand[]): string[] {
  return commands.filter(({ path }) => path !== '').map(({ parent, name }) => `${parent}/${name}`)
}

/** Options, as in `--to`, after which the next word is their value and no command. */
export function optionsWith(
  commands: CompletedCommand[],
  ...values: readonly CompletedOption['value'][]
): string[] {
  const names = commands.flatMap(({ options }) =>
    options.filter(o => values.includes(o.value)).map(o => o.long),
  )
  return [...new Set(names)]
}

/** For bash and zsh: within single quotes. */
export function quote(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`
}
