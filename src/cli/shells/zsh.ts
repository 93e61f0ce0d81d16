import { type CompletedCommand, optionsWith, quote, stepsOf } from './commands.ts'

/** For `source <(lighter completion zsh)`, or as the file `_lighter` in a folder of `$fpath`. */
export function zshCompletion(commands: CompletedCommand[]): string {
  // `_describe` takes `word:what it is`.
  const entry = (word: string, description: string) => quote(`${word}:${description.replaceAll(':', '\\:')}`)
  const words = commands.map(command => {
    const named = [
      ...command.subcommands.map(sub => entry(sub.name, sub.description)),
      ...command.argumentChoices.map(choice => quote(choice)),
    ]
    const options = command.options.map(option => entry(option.long, option.description))
    return `    ${quote(command.path)}) candidates=(${named.join(' ')}); options=(${options.join(' ')}) ;;`
  })
  return `#compdef lighter pg-lighter
_lighter() {
  local at= i
  local -a candidates options
  for ((i = 2; i < CURRENT; i++)); do
    case "\${words[i]}" in
      ${optionsWith(commands, 'file', 'word').join('|')}) ((i++)); continue ;;
    esac
    case "$at/\${words[i]}" in
      ${stepsOf(commands).map(quote).join('|')}) at=\${at:+$at }\${words[i]} ;;
    esac
  done
  case "\${words[CURRENT-1]}" in
    ${optionsWith(commands, 'file').join('|')}) _files; return ;;
    ${optionsWith(commands, 'word').join('|')}) _message value; return ;;
  esac
  case "$at" in
${words.join('\n')}
  esac
  if [[ \${words[CURRENT]} == -* || \${#candidates} -eq 0 ]]; then
    _describe option options
  else
    _describe command candidates
  fi
}
if [[ $funcstack[1] == _lighter ]]; then _lighter "$@"; else compdef _lighter lighter pg-lighter; fi`
}
