import { type CompletedCommand, optionsWith, stepsOf } from './commands.ts'

const values = { none: ' -f', optional: ' -f', file: ' -r -F', word: ' -x' }

/** For `lighter completion fish | source`, or as `lighter.fish` in fish's folder of completions. */
export function fishCompletion(commands: CompletedCommand[]): string {
  const lines = commands.flatMap(command => {
    const at = `complete -c lighter -n ${quote(`__lighter_at ${quote(command.path)}`)}`
    return [
      ...command.subcommands.map(sub => `${at} -f -a ${quote(sub.name)} -d ${quote(sub.description)}`),
      ...command.argumentChoices.map(choice => `${at} -f -a ${quote(choice)}`),
      ...command.options.map(({ long, short, value, description }) => {
        const names = `-l ${long.slice(2)}${short === undefined ? '' : ` -s ${short}`}`
        return `${at} ${names}${values[value]} -d ${quote(description)}`
      }),
    ]
  })
  return `function __lighter_at
  set -l at ''
  set -l skip 0
  for word in (commandline -opc)[2..]
    if test $skip = 1
      set skip 0
      continue
    end
    if contains -- $word ${optionsWith(commands, 'file', 'word').join(' ')}
      set skip 1
      continue
    end
    if contains -- "$at/$word" ${stepsOf(commands).map(quote).join(' ')}
      set at (string trim -- "$at $word")
    end
  end
  test "$at" = "$argv[1]"
end
${lines.join('\n')}
complete -c pg-lighter -w lighter`
}

/** fish knows no other escapes within single quotes. */
function quote(text: string): string {
  return `'${text.replaceAll('\\', '\\\\').replaceAll("'", "\\'")}'`
}
