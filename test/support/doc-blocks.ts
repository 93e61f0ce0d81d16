// Fenced blocks of our documents, so that tests can run what readers copy.
import { readFileSync } from 'node:fs'
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

export const docsFile = (name: string) => path.join(import.meta.dirname, '..', '..', 'docs', name)

export function readDoc(name: string): string {
  return readFileSync(docsFile(name), 'utf8')
}

/** All fenced blocks, in order. */
export function blocksOf(markdown: string): DocBlock[] {
  const blocks: DocBlock[] = []
  let open: DocBlock | undefined
  let heading = ''
  for (const [index, line] of markdown.split('\n').entries()) {
    const fence = /^```(.*)$/.exec(line)
    if (open === undefined) {
      if (fence !== null) open = { info: fence[1] ?? '', text: '', line: index + 1, heading }
      else if (/^#+ /.test(line)) heading = line.replace(/^#+ /, '')
    } else if (fence !== null) {
      blocks.push(open)
      open = undefined
    } else open.text += `${line}\n`
  }
  return blocks
}
