// npm run screenshots: pictures of the dashboard for docs/images/, from a daemon that has really offloaded what they show.
import { randomUUID } from 'node:crypto'
import { mkdir, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { expect, test } from 'vitest'
import { sweepRollup } from '../../src/sweeps/rollup.ts'
import { startApi } from '../support/api.ts'
import { createEnvironment, drained, until } from '../support/environment.ts'
import { writeFailingRows } from '../support/failing-rows.ts'
import { runNow } from '../support/sweep.ts'
import { launchChromium, openPage } from './chromium.ts'
import { signIn } from './dashboard-page.ts'
import { writeAtPace } from './demo-data.ts'
import { makePast } from './past.ts'

const folder = path.join(import.meta.dirname, '../../docs/images')
const maxBytes = 250_000
const serviceKey = `service-${randomUUID()}`

test('pictures', { timeout: 580_000 }, async () => {
  await mkdir(folder, { recursive: true })
  const environment = await createEnvironment()
  const env = { AUTH_MODE: 'service', SERVICE_API_KEY: serviceKey, OFFLOAD_MAX_ATTEMPTS: '1' }
  const api = await startApi(environment, { env })
  const browser = await launchChromium()
  const writing = new AbortController()
  try {
    const written = await writeAtPace(environment, {
      messages: 5000,
      tenants: 9,
      seed: 11,
      perSecond: 400,
      heavy: 60,
    })
    await drained(environment, 120_000)
    await makePast(environment)
    await runNow(environment, 'rollup', {
      sweep: async context => {
        const { corrected = 0 } = await sweepRollup(context, { full: true })
        return { ...(await sweepRollup(context)), corrected }
      },
    })
    await writeFailingRows(environment, 3)
    // A live queue, not a still.
    const messages = writeAtPace(
      environment,
      { messages: 1e6, tenants: 9, seed: 12, perSecond: 60 },
      writing.signal,
    )

    const shoot = async (
      name: string,
      options: { width: number; height: number; dark?: boolean; fullPage?: boolean; at?: string },
    ) => {
      const { page, faults, close } = await openPage(browser, api.url, {
        viewport: { width: options.width, height: options.height },
        colorScheme: options.dark ? 'dark' : 'light',
      })
      await signIn(page, serviceKey).finally(() => expect(faults).toEqual([]))
      const readings = new Set<string | null>()
      await until(
        async () => readings.add(await page.locator('#pulse-text').textContent()).size > 6,
        'the chart of the last minutes shows something',
        120_000,
      )
      if (options.at === 'lookup') {
        const { rows } = await environment.admin.query<{ id: string }>(
          `select id from conversation_messages where metadata ? 'artifact_metadata_ref' and id = any ($1) order by id limit 1`,
          [written],
        )
        await page.getByLabel('Row id').fill(rows[0]?.id ?? '')
        await page.getByLabel('Row id').press('Enter')
        await page.getByRole('button', { name: 'Show the value' }).click()
        await page.locator('pre').waitFor()
      }
      if (options.at !== undefined) await page.locator(`#${options.at}`).scrollIntoViewIfNeeded()
      const file = path.join(options.fullPage ? tmpdir() : folder, `${name}.png`)
      const picture = { path: file, ...(options.fullPage && { fullPage: true }) }
      if (options.at === undefined) await page.screenshot(picture)
      else await page.locator(`#${options.at}`).screenshot({ path: file })
      if (!options.fullPage) expect((await stat(file)).size).toBeLessThan(maxBytes)
      await close()
    }
    await shoot('dashboard-light', { width: 1280, height: 960 })
    await shoot('dashboard-dark', { width: 1280, height: 960, dark: true })
    await shoot('dashboard-phone', { width: 360, height: 780 })
    await shoot('dashboard-lookup', { width: 1280, height: 960, at: 'lookup' })
    if (process.env.SCREENSHOTS === 'all') {
      await shoot('whole-light', { width: 1280, height: 960, fullPage: true })
      await shoot('whole-dark', { width: 1280, height: 960, fullPage: true, dark: true })
      for (const at of ['queue', 'failures', 'storage', 'sweeps', 'lookup'])
        await shoot(`phone-${at}`, { width: 320, height: 780, at, fullPage: true })
    }
    writing.abort()
    await messages
  } finally {
    writing.abort()
    await browser.close()
    await api.daemon.stop()
    await environment.close()
  }
})
