// What docs/troubleshooting.md quotes is what the program says.
import { readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { describe, expect, test } from 'vitest'
import { readDoc } from '../support/doc-blocks.ts'

const root = path.join(import.meta.dirname, '..', '..')
const source = ['src', 'sql']
  .flatMap(folder =>
    readdirSync(path.join(root, folder), { recursive: true, encoding: 'utf8' })
      .filter(name => /\.(ts|sql)$/.test(name))
      .map(name => readFileSync(path.join(root, folder, name), 'utf8')),
  )
  .join('\n')

const sections = readDoc('troubleshooting.md')
  .split(/^### /m)
  .slice(1)
  .map(text => ({ title: text.slice(0, text.indexOf('\n')), text }))

test('there are the ones that a reader needs', () => {
  expect(sections.length).toBeGreaterThan(25)
})

describe.each(sections)('$title', ({ text }) => {
  test('says what is seen, why, and what to do', () => {
    expect(text).toMatch(
      /\*\*You see\*\*[\s\S]*\*\*Cause\*\*[\s\S]*\*\*Remedy\*\*|\*\*You see\*\*[\s\S]*\*\*Remedy\*\*/,
    )
  })

  test('quotes what the program says', () => {
    const [, seen = ''] = /\*\*You see\*\*:([\s\S]*?)(?=^- \*\*|$(?![\s\S]))/m.exec(text) ?? []
    for (const [, quoted = ''] of seen.replaceAll(/\s+/g, ' ').matchAll(/`([^`]+)`/g)) {
      for (const part of quoted.split('…').map(p => p.trim())) {
        if (part.length < 3) continue
        // In SQL a quote is doubled, and `%` stands for what differs.
        expect(
          source.includes(part) || source.includes(part.replaceAll("'", "''")),
          `${quoted}: ${part}`,
        ).toBe(true)
      }
    }
  })
})
