// The life of a daemon process: starts, works, drains on the first signal, leaves at once on the second.
import type { Logger } from 'pino'
import type { Daemon } from '../daemon.ts'
import { LighterError, messageOf } from '../errors.ts'

/**
 * Starts the daemon and returns when it has stopped. Exit status 0 after a clean drain, 1 when the deadline
 * passed with work in flight (its leases run out and another daemon does it) or when the start failed.
 */
export async function runUntilSignal(daemon: Daemon, log: Logger, shutdownTimeoutMs: number): Promise<void> {
  const signalled = Promise.withResolvers<NodeJS.Signals>()
  let signals = 0
  const onSignal = (signal: NodeJS.Signals) => {
    signals++
    if (signals > 1) {
      log.warn(
        { signal },
        'second signal: leaving at once; work in flight comes back when its leases run out',
      )
      process.exit(1)
    }
    signalled.resolve(signal)
  }
  process.on('SIGTERM', onSignal)
  process.on('SIGINT', onSignal)
  process.on('unhandledRejection', error => {
    log.fatal({ error: messageOf(error) }, 'fatal error')
    process.exit(1)
  })

  try {
    await Promise.race([daemon.start(), signalled.promise])
  } catch (error) {
    log.fatal(
      {
        code: error instanceof LighterError ? error.code : undefined,
        hint: error instanceof LighterError ? error.hint : undefined,
      },
      messageOf(error),
    )
    await daemon.stop(0)
    process.exitCode = 1
    return
  }
  const signal = await signalled.promise
  log.info({ signal, shutdownTimeoutMs }, 'draining work in flight')
  const finished = await daemon.stop(shutdownTimeoutMs)
  if (finished) log.info('stopped')
  else {
    log.warn('stopped with work in flight: its leases run out and it is done again')
    process.exit(1)
  }
}
