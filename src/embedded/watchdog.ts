// Nothing that we start may outlive us, and a process that gets SIGKILL can't clean up after itself.
import { spawn } from 'node:child_process'

/**
 * Signals the process, or with a negative id the group, when this process ends before `ended` settles. A
 * shell waits on a pipe that only we hold open, and that the kernel closes for us however we end. It is no
 * `node`, so that whoever kills all of those does not kill it too.
 */
export function endWithUs(id: number, signal: 'INT' | 'TERM', ended: Promise<void>): void {
  if (process.platform === 'win32') return
  const wait = 'read -r line; kill -s "$1" -- "$2"'
  const watchdog = spawn('/bin/sh', ['-c', wait, 'pg-lighter-watchdog', signal, String(id)], {
    cwd: '/',
    detached: true,
    stdio: ['pipe', 'ignore', 'ignore'],
  })
  watchdog.on('error', () => undefined)
  watchdog.stdin.on('error', () => undefined)
  watchdog.unref()
  // The kernel may give the id to another process from now on.
  void ended.then(() => watchdog.kill('SIGKILL'))
}
