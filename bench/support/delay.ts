import { fork } from 'node:child_process'
import { once } from 'node:events'
import path from 'node:path'

/** Puts a delay in front of the store. */
export async function startDelay(
  endpoint: string,
  delayMs: number,
): Promise<{ endpoint: string; stop(): Promise<void> }> {
  const child = fork(path.join(import.meta.dirname, 'delay-proxy.ts'), {
    env: { ...process.env, UPSTREAM: endpoint, DELAY_MS: String(delayMs) },
  })
  const [port] = await once(child, 'message')
  return {
    endpoint: `http://127.0.0.1:${port}${new URL(endpoint).pathname}`,
    stop: async () => {
      const ended = once(child, 'exit')
      child.disconnect()
      await ended
    },
  }
}
