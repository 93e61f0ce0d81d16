// The life of a daemon process: starts, works, drains on the first signal, leaves at once on the second.
import type { Logger } from 'pino'
import type { Daemon } from '../daemon.ts'
import { LighterError } from '../errors.ts'
import { explainError } from '../explain-error.ts'

/** npm passes on to us the Ctrl-C that the terminal has already sent to us: that makes one signal, not two. */
const sameSignalMs = 300

/**
 * Starts the daemon and returns when it has stopped. Exit status 0 after a clean drain, 1 when the deadline
 * passed with work in flight (its leases run out and another daemon does it) or when the start failed.
 *
 * The handlers stay: the caller ends the process, and until then a second signal still ends it at once.
 */
export async function runUntilSignal(daemon: Daemon, log: Logger, shutdownTimeoutMs: number): Promise<void> {
  const signalled = Promise.withResolvers<NodeJS.Signals>()
  let firstAt: number | null = null
  const onSignal = (signal: NodeJS.Signals) => {
    if (firstAt === null) {
      firstAt = performance.now()
      signalled.resolve(signal)
    } else if (performance.now() - firstAt > sameSignalMs) {
      log.warn(
        { signal },
        'second signal: leaving at once; work in flight comes back when its leases run out',
      )
      process.exit(1)
    }
  }
  const onFatal = (error: unknown) => {
    logFatal(log, error)
    process.exit(1)
  }
  process.on('SIGTERM', onSignal)
  process.on('SIGINT', onSignal)
  process.on('unhandledRejection', onFatal)
  process.on('uncaughtException', onFatal)

  try {
    await Promise.race([daemon.start(), signalled.promise])
  } catch (error) {
    logFatal(log, error)
    process.exitCode = 1
    await daemon.stop(0)
    return
  }
  const signal = await signalled.promise
  log.info({ signal, shutdownTimeoutMs }, 'draining work in flight')
  if (await daemon.stop(shutdownTimeoutMs)) log.info('stopped')
  else {
    log.warn('stopped with work in flight: its leases run out and it is done again')
    process.exitCode = 1
  }
}

function logFatal(log: Logger, error: unknown): void {
  const { message, hint } = explainError(error)
  log.fatal({ code: error instanceof LighterError ? error.code : undefined, hint }, message)
}
