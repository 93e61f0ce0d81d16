// Tables for a terminal of a given width.
import { styleText } from 'node:util'

export interface Column {
  title: string
  /** Numbers: to the right, and never cut. */
  right?: boolean
  /** Text, cut when the table is too wide; the others keep their width. */
  flexible?: boolean
}

const gap = '  '
const narrowest = 8

/**
 * Columns padded to their widest cell. Too wide a table has its flexible columns cut, the widest first; what is then
 * still too wide loses columns at its right end.
 */
export function fitTable(columns: Column[], rows: string[][], width: number): string[] {
  const shown = columns.map((column, i) => ({
    column,
    i,
    width: Math.max(column.title.length, ...rows.map(row => row[i]?.length ?? 0)),
  }))
  const total = () => shown.reduce((sum, c) => sum + c.width, 0) + gap.length * (shown.length - 1)
  while (total() > width) {
    const [widest] = shown
      .filter(c => c.column.flexible && c.width > narrowest)
      .sort((a, b) => b.width - a.width)
    if (widest !== undefined) widest.width--
    else if (shown.length > 1) shown.pop()
    else break
  }
  const line = (cells: string[]) =>
    shown
      .map(({ column, i, width: cellWidth }) => {
        const cell = cut(cells[i] ?? '', cellWidth)
        return column.right ? cell.padStart(cellWidth) : cell.padEnd(cellWidth)
      })
      .join(gap)
      .trimEnd()
  return [styleText('bold', line(columns.map(c => c.title))), ...rows.map(line)]
}

/** At most so many characters, an ellipsis being the last of a longer text. */
export function cut(text: string, width: number): string {
  return text.length <= width ? text : `${text.slice(0, Math.max(width - 1, 0))}…`
}

/** Lines of at most so many characters, broken between words; those after the first are indented. */
export function wrap(text: string, width: number): string[] {
  const lines: string[] = []
  let line = ''
  for (const word of text.split(' ')) {
    const longer = line === '' ? word : `${line} ${word}`
    if (longer.length > width && line.trim() !== '') {
      lines.push(line)
      line = `  ${word}`
    } else line = longer
  }
  return [...lines, line].map(each => cut(each, width))
}
