// Fenced blocks of our documents, so that tests can run what readers copy.
import { readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'

export interface DocBlock {
  /** What is written after the opening fence, such as `sh` or `json cors`. */
  info: string
  text: string
  /** Line of the opening fence, from 1. */
  line: number
  /** The line of text before it. */
  heading: string
}

const docsFile = (name: string) => path.join(import.meta.dirname, '..', '..', 'docs', name)

export function readDoc(name: string): string {
  return readFileSync(docsFile(name), 'utf8')
}

/** All fenced blocks, in order; those in lists without their indentation. */
export function blocksOf(markdown: string): DocBlock[] {
  const blocks: DocBlock[] = []
  let open: DocBlock | undefined
  let heading = ''
  let indentation = ''
  for (const [index, line] of markdown.split('\n').entries()) {
    const fence = /^( *)```(.*)$/.exec(line)
    if (open === undefined) {
      if (fence !== null) {
        indentation = fence[1] ?? ''
        open = { info: fence[2] ?? '', text: '', line: index + 1, heading }
      } else if (/^#+ /.test(line)) heading = line.replace(/^#+ /, '')
    } else if (fence !== null) {
      blocks.push(open)
      open = undefined
    } else open.text += `${line.startsWith(indentation) ? line.slice(indentation.length) : line}\n`
  }
  return blocks
}

const root = path.join(import.meta.dirname, '..', '..')

/** Every document of ours, as paths from the root of the repository. */
export function documents(): string[] {
  const inDocs = readdirSync(docsFile('.'), { recursive: true, encoding: 'utf8' })
  return [
    'README.md',
    'CONTRIBUTING.md',
    'CHANGELOG.md',
    ...inDocs
      .filter(name => name.endsWith('.md'))
      .map(name => path.posix.join('docs', name.replaceAll('\\', '/'))),
  ].sort()
}

export function readDocument(name: string): string {
  return readFileSync(path.join(root, name), 'utf8')
}
