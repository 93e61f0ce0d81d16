import { Argument, type Command } from 'commander'
import { print } from './output.ts'
import { bashCompletion } from './shells/bash.ts'
import { readCommands } from './shells/commands.ts'
import { fishCompletion } from './shells/fish.ts'
import { zshCompletion } from './shells/zsh.ts'

const shells = { bash: bashCompletion, zsh: zshCompletion, fish: fishCompletion }

export function addCompletion(program: Command): void {
  program
    .command('completion')
    .addArgument(new Argument('<shell>', 'the shell').choices(Object.keys(shells)))
    .description('print a script that lets a shell complete commands and options')
    .addHelpText(
      'after',
      `
For this session, or in the shell's start file for all of them:
  bash   source <(lighter completion bash)
  zsh    source <(lighter completion zsh)      (after compinit)
  fish   lighter completion fish | source`,
    )
    .action((shell: keyof typeof shells) => print(shells[shell](readCommands(program))))
}
