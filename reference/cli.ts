// The commands of docs/cli.md, out of commander's definitions.
import type { Command, Option } from 'commander'
import { cell, renderMarkdownTable } from './tables.ts'

/** All commands with arguments, options and what their help says of exit statuses. */
export function renderCommands(program: Command, parents: string[] = ['lighter']): string {
  const help = program.createHelp()
  return help
    .visibleCommands(program)
    .filter(command => command.name() !== 'help')
    .map(command => renderCommand(command, [...parents, command.name()]))
    .join('\n')
}

function renderCommand(command: Command, path: string[]): string {
  const nested = renderCommands(command, path)
  const after = helpAfter(command)
  const options = command.options.filter(option => !option.hidden)
  return [
    `### ${path.join(' ')}\n`,
    `${sentence(command.description())}\n`,
    `\`\`\`text\n${path.join(' ')} ${command.usage()}\n\`\`\`\n`,
    command.registeredArguments.length === 0 ? '' : `${argumentsOf(command)}\n`,
    options.length === 0
      ? ''
      : `${renderMarkdownTable(['option', 'meaning', 'default'], options.map(describe))}\n`,
    after === '' ? '' : after.includes('\n') ? `\`\`\`text\n${after}\n\`\`\`\n` : `${after}\n`,
    nested,
  ]
    .filter(part => part !== '')
    .join('\n')
}

function argumentsOf(command: Command): string {
  return command.registeredArguments
    .map(argument => {
      const choices = argument.argChoices?.map(choice => `\`${choice}\``).join(', ')
      return `- \`${argument.name()}\`: ${argument.description}${choices === undefined ? '' : `; one of ${choices}`}`
    })
    .join('\n')
}

function describe(option: Option): string[] {
  const preset = option.defaultValue === undefined || option.negate ? '' : `\`${option.defaultValue}\``
  return [`\`${option.flags}\``, cell(option.description), option.mandatory ? '**required**' : preset]
}

/** What was added with `addHelpText('after', …)`: commander writes it and does not give it away. */
function helpAfter(command: Command): string {
  let written = ''
  const before = command.configureOutput()
  command.configureOutput({ writeOut: text => (written += text), getOutHelpWidth: () => 10_000 })
  command.outputHelp()
  command.configureOutput(before)
  // The option for help is the last of what commander itself writes.
  const own = written.lastIndexOf('display help for command')
  return written.slice(written.indexOf('\n', own)).trim()
}

const sentence = (text: string) => `${text.charAt(0).toUpperCase()}${text.slice(1)}.`
