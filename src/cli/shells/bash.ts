import { type CompletedCommand, optionsWith, quote, stepsOf } from './commands.ts'

/** For `source <(lighter completion bash)`. Needs no bash-completion. */
export function bashCompletion(commands: CompletedCommand[]): string {
  const words = commands.map(command => {
    const all = [
      ...command.subcommands.map(sub => sub.name),
      ...command.argumentChoices,
      ...command.options.map(option => option.long),
    ]
    return `    ${quote(command.path)}) words=${quote(all.join(' '))} ;;`
  })
  return `_lighter() {
  local cur=\${COMP_WORDS[COMP_CWORD]} at= words= i
  COMPREPLY=()
  for ((i = 1; i < COMP_CWORD; i++)); do
    case "\${COMP_WORDS[i]}" in
      ${optionsWith(commands, 'file', 'word').join('|')}) ((i++)); continue ;;
    esac
    case "$at/\${COMP_WORDS[i]}" in
      ${stepsOf(commands).map(quote).join('|')}) at=\${at:+$at }\${COMP_WORDS[i]} ;;
    esac
  done
  case "\${COMP_WORDS[COMP_CWORD-1]}" in
    ${optionsWith(commands, 'file').join('|')})
      compopt -o filenames 2> /dev/null
      mapfile -t COMPREPLY < <(compgen -f -- "$cur")
      return ;;
    ${optionsWith(commands, 'word').join('|')}) return ;;
  esac
  case "$at" in
${words.join('\n')}
  esac
  mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
}
complete -F _lighter lighter pg-lighter`
}
