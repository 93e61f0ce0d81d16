// The dashboard in a real browser; apart from the other tests, which need no Chromium.
import { defineConfig } from 'vitest/config'

export default defineConfig({
  test: {
    // Pictures for the documents are made when asked for: npm run screenshots.
    include: [
      process.env.SCREENSHOTS === undefined ? 'test/browser/**/*.test.ts' : 'test/browser/screenshots.ts',
    ],
    globalSetup: ['test/support/global-setup.ts'],
    pool: 'forks',
    maxWorkers: 1,
    testTimeout: 60_000,
    hookTimeout: 120_000,
  },
})
