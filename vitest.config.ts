import { tmpdir } from 'node:os'
import path from 'node:path'
import { defineConfig } from 'vitest/config'

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    // They need Chromium: npm run test:browser.
    exclude: ['test/browser/**'],
    globalSetup: ['test/support/global-setup.ts'],
    reporters: ['default', './test/support/closing-line.ts'],
    // Each file has a database and a bucket prefix of its own; two files at once keep Postgres busy enough.
    pool: 'forks',
    maxWorkers: 2,
    // Halves the start of each command and daemon that tests run.
    env: { NODE_COMPILE_CACHE: path.join(tmpdir(), 'pg-lighter-compile-cache') },
    testTimeout: 60_000,
    hookTimeout: 120_000,
  },
})
