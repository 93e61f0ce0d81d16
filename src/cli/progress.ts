// How far it is: on a terminal one line with a bar, written over; elsewhere a line every ten seconds, or when something
// new begins.

export interface Progress {
  /** @param share of all that is to be done, from 0 to 1, where that is known */
  update(text: string, share?: number | null): void
  /** Another part of the work: said at once. */
  begin(text: string): void
  /** Leaves the terminal's line empty for what follows. */
  end(): void
}

/** What is written to, as far as it matters here. */
export interface ProgressStream {
  isTTY?: boolean
  columns?: number
  write(text: string): unknown
}

const terminalMs = 100
const lineMs = 10_000
const barWidth = 20

/** On standard error, so that what is printed stays what was asked for. @param silent with --json */
export function createProgress(silent: boolean, stream: ProgressStream = process.stderr): Progress {
  // A dumb terminal can't write over a line.
  const terminal = stream.isTTY === true && process.env.TERM !== 'dumb'
  let shownAt = performance.now()
  let shown = false
  const show = (text: string) => {
    shownAt = performance.now()
    if (!terminal) {
      stream.write(`${text}\n`)
      return
    }
    shown = true
    stream.write(`\r\x1b[2K${text.slice(0, Math.max(20, (stream.columns ?? 80) - 1))}`)
  }
  return {
    update: (text, share = null) => {
      if (silent || performance.now() - shownAt < (terminal ? terminalMs : lineMs)) return
      show(terminal && share !== null ? `${bar(share)} ${text}` : text)
    },
    begin: text => {
      if (!silent) show(text)
    },
    end: () => {
      if (shown) stream.write('\r\x1b[2K')
      shown = false
    },
  }
}

function bar(share: number): string {
  const known = Math.min(Math.max(share, 0), 1)
  const full = Math.round(known * barWidth)
  return `[${'#'.repeat(full)}${' '.repeat(barWidth - full)}] ${String(Math.floor(known * 100)).padStart(3)} %`
}
