// Ends a run with one line that people and scripts read alike: "N passed, N failed". A secret or a payload in what was
// logged meanwhile is a failure, too.

import type { Reporter, TestModule, Vitest } from 'vitest/node'
import { findLeaks, logsVariable, secretsVariable } from './logs.ts'

function leaksOfRun(): string[] {
  const { [logsVariable]: directory, [secretsVariable]: secrets } = process.env
  return directory === undefined || secrets === undefined ? [] : findLeaks(directory, JSON.parse(secrets))
}

export default class ClosingLine implements Reporter {
  private vitest: Vitest | undefined

  onInit(vitest: Vitest): void {
    this.vitest = vitest
  }

  /** A file that can't be loaded, and an error outside of any test, count as failures. */
  onTestRunEnd(modules: readonly TestModule[], unhandled: readonly unknown[]): void {
    const counts = { passed: 0, failed: unhandled.length, skipped: 0 }
    for (const module of modules) {
      counts.failed += module.errors().length
      for (const test of module.children.allTests()) {
        const { state } = test.result()
        if (state === 'pending') counts.failed++
        else counts[state]++
      }
    }
    for (const leak of leaksOfRun()) {
      this.vitest?.logger.error(`in the logs of this run, ${leak}`)
      counts.failed++
      process.exitCode = 1
    }
    const skipped = counts.skipped > 0 ? `, ${counts.skipped} skipped` : ''
    this.vitest?.logger.log(`${counts.passed} passed, ${counts.failed} failed${skipped}`)
  }
}
