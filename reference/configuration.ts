// The table of docs/configuration.md, out of the schema of the environment and the sections of .env.example.
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { environmentSchema, expectedOf, secretVariables } from '../src/config.ts'
import { cell, renderMarkdownTable } from './tables.ts'

type Variable = keyof typeof environmentSchema.shape

const isVariable = (name: string): name is Variable => name in environmentSchema.shape

/** Headings and the variables below each, in their order. */
function readSections(): { title: string; variables: Variable[] }[] {
  const example = readFileSync(path.join(import.meta.dirname, '..', '.env.example'), 'utf8')
  return example
    .split(/^# --- (?=.* ---$)/m)
    .slice(1)
    .map(section => {
      const names = [...section.matchAll(/^(?:# )?([A-Z][A-Z0-9_]+)=(?!\w+[:,] )/gm)].map(
        ([, name = '']) => name,
      )
      return { title: section.slice(0, section.indexOf(' ---')), variables: names.filter(isVariable) }
    })
}

export function renderConfiguration(): string {
  const header = ['variable', 'value', 'default', 'meaning']
  return readSections()
    .map(
      ({ title, variables }) => `### ${title}\n\n${renderMarkdownTable(header, variables.map(describe))}\n`,
    )
    .join('\n')
}

function describe(name: Variable): string[] {
  const schema = environmentSchema.shape[name]
  const preset = schema.safeParse(undefined)
  const value = preset.success ? (preset.data ?? '') : null
  return [
    `\`${name}\`${secretVariables.includes(name) ? ' (secret)' : ''}`,
    cell(expectedOf(name)),
    value === null ? '**required**' : value === '' ? '' : `\`${value}\``,
    cell(schema.description ?? ''),
  ]
}
