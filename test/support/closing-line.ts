// Ends a run with one line that people and scripts read alike: "N passed, N failed".
import type { Reporter, TestModule, Vitest } from 'vitest/node'

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
    const skipped = counts.skipped > 0 ? `, ${counts.skipped} skipped` : ''
    this.vitest?.logger.log(`${counts.passed} passed, ${counts.failed} failed${skipped}`)
  }
}
