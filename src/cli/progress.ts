// One line that tells how far it is: rewritten in place on a terminal, a new one every ten seconds elsewhere.

export interface Progress {
  update(text: string): void
  /** Leaves the terminal's line empty for what follows. */
  end(): void
}

const terminalMs = 100
const lineMs = 10_000

/** On standard error, so that what is printed stays what was asked for. @param silent with --json */
export function createProgress(silent: boolean, stream: NodeJS.WriteStream = process.stderr): Progress {
  let shownAt = performance.now()
  let shown = false
  return {
    update: text => {
      if (silent || performance.now() - shownAt < (stream.isTTY ? terminalMs : lineMs)) return
      shownAt = performance.now()
      if (!stream.isTTY) {
        stream.write(`${text}\n`)
        return
      }
      shown = true
      stream.write(`\r\x1b[2K${text.slice(0, Math.max(20, (stream.columns ?? 80) - 1))}`)
    },
    end: () => {
      if (shown) stream.write('\r\x1b[2K')
      shown = false
    },
  }
}
