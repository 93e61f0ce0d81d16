// The dashboard in a real Chromium: what a person sees, can do by keyboard, and hears from a screen reader's rules.
import { randomUUID } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import axe from 'axe-core'
import type { Browser, BrowserContextOptions, Page } from 'playwright-core'
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest'
import { environmentSchema } from '../../src/config.ts'
import { startApi, type TestApi } from '../support/api.ts'
import {
  createEnvironment,
  drained,
  insertMessage,
  newConversation,
  rawMetadata,
  type TestEnvironment,
  until,
} from '../support/environment.ts'
import { mendFailingRows, writeFailingRows } from '../support/failing-rows.ts'
import { writeMessages } from '../support/messages.ts'
import { launchChromium, openPage, type WatchedPage } from './chromium.ts'
import { signIn, untilLive } from './dashboard-page.ts'

const sweepVariables = Object.keys(environmentSchema.shape).filter(name => /^SWEEP_.*_CRON$/.test(name))
const serviceKey = `service-${randomUUID()}`
const env = {
  AUTH_MODE: 'service',
  SERVICE_API_KEY: serviceKey,
  OFFLOAD_MAX_ATTEMPTS: '1',
  // Each test signs in, from an address of its own.
  API_TRUST_PROXY: '1',
  // Of which none is to run by itself.
  ...Object.fromEntries(sweepVariables.map(name => [name, 'off'])),
}

let environment: TestEnvironment
let empty: TestEnvironment
let api: TestApi
let emptyApi: TestApi
let browser: Browser
let addresses = 0
const opened: WatchedPage[] = []

beforeAll(async () => {
  ;[environment, empty, browser] = await Promise.all([
    createEnvironment(),
    createEnvironment(),
    launchChromium(),
  ])
  ;[api, emptyApi] = await Promise.all([startApi(environment, { env }), startApi(empty, { env })])
  await writeMessages(environment, { messages: 300, tenants: 4, seed: 5 })
  await writeFailingRows(environment, 2)
  await drained(environment)
})
afterEach(async () => {
  // Whatever the test was about: no policy was violated, no script failed, and nobody else was asked for anything.
  const pages = opened.splice(0)
  await Promise.all(pages.map(page => page.close()))
  expect(pages.flatMap(page => page.faults)).toEqual([])
})
afterAll(async () => {
  await browser?.close()
  await Promise.all([api?.daemon.stop(), emptyApi?.daemon.stop()])
  await Promise.all([environment?.close(), empty?.close()])
})

async function open(options: BrowserContextOptions = {}, of: TestApi = api): Promise<Page> {
  const page = await openPage(browser, of.url, {
    viewport: { width: 1280, height: 900 },
    extraHTTPHeaders: { 'x-forwarded-for': `10.1.0.${addresses++}` },
    ...options,
  })
  opened.push(page)
  return page.page
}

async function dashboard(options: BrowserContextOptions = {}, of: TestApi = api): Promise<Page> {
  const page = await open(options, of)
  await signIn(page, serviceKey)
  return page
}

/** What axe finds, of any weight; its rules of WCAG 2.2 A and AA, and its best practices. */
async function violations(page: Page): Promise<string[]> {
  await page.evaluate(axe.source)
  const { violations } = await page.evaluate(() =>
    // @ts-expect-error it is there since the line above
    window.axe.run({ resultTypes: ['violations'] }),
  )
  return violations.map(
    (v: { id: string; impact: string; nodes: { target: string[]; failureSummary: string }[] }) =>
      `${v.impact} ${v.id}: ${v.nodes.map(node => `${node.target} (${node.failureSummary})`).join('; ')}`,
  )
}

const overflow = (page: Page) =>
  page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth)

const focused = (page: Page) =>
  page.evaluate(() => {
    const element = document.activeElement
    const style = element === null ? null : getComputedStyle(element)
    return {
      name: element?.getAttribute('aria-label') ?? element?.textContent?.trim() ?? '',
      outlined: style !== null && style.outlineStyle !== 'none' && style.outlineWidth !== '0px',
    }
  })

const tile = (page: Page, name: string) =>
  page.locator('.tile', { has: page.getByText(name, { exact: false }) }).locator('.tile-value')

/** A row of several artifacts. */
async function offloadedRow(metadata: string): Promise<string> {
  const { conversationId } = await newConversation(environment)
  const id = await insertMessage(environment, conversationId, metadata)
  await drained(environment)
  return id
}

async function lookUp(page: Page, rowId: string): Promise<void> {
  await page.getByLabel('Row id').fill(rowId)
  await page.getByLabel('Row id').press('Enter')
  await page.getByRole('article', { name: `Row ${rowId}` }).waitFor()
}

test.each<[string, BrowserContextOptions]>([
  ['light', { colorScheme: 'light' }],
  ['dark', { colorScheme: 'dark' }],
  ['a phone of 320 px', { colorScheme: 'light', viewport: { width: 320, height: 640 }, hasTouch: true }],
  ['a dark phone', { colorScheme: 'dark', viewport: { width: 320, height: 640 } }],
])('axe finds nothing, and nothing is wider than the window: %s', async (_name, options) => {
  const page = await open(options)
  const check = async (what: string) => {
    expect([what, await violations(page)]).toEqual([what, []])
    expect([what, await overflow(page)]).toEqual([what, 0])
  }
  await page.goto('/dashboard')
  await check('the login page')
  await page.getByLabel('Service key').fill('wrong')
  await page.getByRole('button', { name: 'Sign in' }).click()
  await page.getByRole('alert').waitFor()
  await check('a wrong key')
  await signIn(page, serviceKey)
  await check('the figures')
  for (const figures of await page.getByText('Figures as a table').all()) await figures.click()
  await lookUp(page, await offloadedRow(`{"tool_interactions": [1], "trace": "${'x'.repeat(9000)}"}`))
  for (const button of await page.getByRole('button', { name: /^Show the/ }).all()) await button.click()
  await until(async () => (await page.locator('pre').count()) === 3, 'the payloads are shown')
  await check('figures as tables, and a row with its payloads')
  await page.getByRole('button', { name: 'Retry all' }).click()
  await page.getByRole('dialog').waitFor()
  await check('the question before all are retried')
})

test('with nothing to show, each part says what to do', async () => {
  const page = await dashboard({}, emptyApi)
  for (const text of [
    'No row has been offloaded in this time',
    'No row has been given up',
    'Nothing is stored yet',
  ])
    await expect(page.getByText(text).count()).resolves.toBeGreaterThan(0)
  await page.getByText('No sweep has run yet').waitFor()
  expect(await violations(page)).toEqual([])
})

test('all of it can be reached and used by keyboard, and one sees where one is', async () => {
  const page = await open()
  await page.goto('/dashboard')
  // The field has the focus by itself, as soon as the browser has come to that.
  await page.getByLabel('Service key').and(page.locator(':focus')).waitFor()
  await page.keyboard.type(serviceKey)
  await page.keyboard.press('Enter')
  await untilLive(page)
  await page.keyboard.press('Tab')
  expect(await focused(page)).toEqual({ name: 'Skip to the figures', outlined: true })
  await page.keyboard.press('Enter')
  expect(await page.evaluate(() => document.activeElement?.id)).toBe('content')
  await page.reload()
  await untilLive(page)
  const names: string[] = []
  for (let i = 0; i < 80; i++) {
    await page.keyboard.press('Tab')
    if (await page.evaluate(() => document.activeElement === document.body)) break
    const { name, outlined } = await focused(page)
    expect([name, outlined]).toEqual([name, true])
    names.push(name)
  }
  for (const wanted of [
    'Activity',
    'Look up',
    'Dark',
    'Sign out',
    '24 hours',
    '7 days',
    'Figures as a table',
    'Retry all',
    /^Retry row [0-9a-f-]{36}$/,
    'Look up',
  ])
    expect(names).toContainEqual(typeof wanted === 'string' ? wanted : expect.stringMatching(wanted))
  await page.getByRole('button', { name: '7 days' }).focus()
  await page.keyboard.press('Enter')
  expect(await page.getByRole('button', { name: '7 days' }).getAttribute('aria-pressed')).toBe('true')
})

test('a screen reader finds its way: landmarks, headings, tables with names, pictures with words', async () => {
  const page = await dashboard()
  const tree = await page.locator('body').ariaSnapshot()
  for (const part of [
    /- banner:/,
    /- navigation "Sections":/,
    /- main:/,
    /- heading "Dashboard" \[level=1\]/,
    /- heading "Failures" \[level=2\]/,
    /- heading "Dead letters" \[level=3\]/,
    /- table "Storage by tenant and kind":/,
    /- columnheader "Error"/,
    /- rowheader "conversation_messages"/,
    /- img "Rows offloaded by the hour\. \d+ rows in 24 hours/,
    /- status: The figures are live\./,
  ])
    expect(tree).toMatch(part)
})

test('offloading that does not pay is said before anything else', async () => {
  await environment.admin.query('vacuum analyze conversation_messages')
  const page = await dashboard()
  // 300 messages do not make up for our tables.
  const verdict =
    /^Offloading does not pay here: it costs about \$[\d.]+ more a month; after a rewrite the database is about [\d.]+ [KM]B larger/
  const overview = page.locator('#overview')
  await until(
    async () => verdict.test((await overview.locator(':scope > :first-child').textContent()) ?? ''),
    'the page begins with it',
  )
  expect(await overview.locator(':scope > :first-child').isVisible()).toBe(true)
  expect(await page.locator('#savings .message').textContent()).toMatch(verdict)
  const ledger = async () => (await page.locator('#savings .ledger').textContent()) ?? ''
  expect(await ledger()).toMatch(/On disk now: attached tables and all of pg-lighter[\d.]+ [KM]B/)
  // What the vacuum found may take a second to be told to others.
  await until(async () => /would give backabout [\d.]+ [KM]?B/.test(await ledger()), 'the estimate is there')

  const other = await dashboard({}, emptyApi)
  await other.locator('#savings .message', { hasText: 'Nothing is offloaded yet' }).waitFor()
  expect(await other.locator('#overview > :first-child').isVisible()).toBe(false)
})

test('an offload is seen without anything being done', async () => {
  const page = await dashboard()
  const before = await tile(page, 'Out of Postgres').textContent()
  const rows = Number((await tile(page, 'Rows offloaded').textContent())?.replaceAll(',', ''))
  await offloadedRow(`{"tool_interactions": ["${'m'.repeat(400_000)}"]}`)
  await until(
    async () => (await tile(page, 'Out of Postgres').textContent()) !== before,
    'the bytes have changed',
  )
  await until(
    async () => Number((await tile(page, 'Rows offloaded').textContent())?.replaceAll(',', '')) > rows,
    'the rows have changed',
  )
  expect(
    await page
      .locator('#queue')
      .getByText(/^(Awake|Asleep)$/)
      .count(),
  ).toBe(1)
})

test('the retry button retries that row; retry all, after a question, the others', async () => {
  const ids = await writeFailingRows(environment, 3)
  const page = await dashboard()
  const button = page.getByRole('button', { name: `Retry row ${ids[0]}` })
  await button.waitFor()
  // What is still wrong fails again, and is told with its error.
  await button.click()
  await page.getByText(`Row ${ids[0]} is in the queue again.`).waitFor()
  await until(async () => {
    const { rows } = await environment.admin.query(
      `select from lighter.failed_jobs where row_id = $1 and last_error like 'no tenant%'`,
      [ids[0]],
    )
    return rows.length === 1
  }, 'it has failed again')
  await mendFailingRows(environment)
  await button.click()
  await until(
    async () => (await rawMetadata(environment, ids[0] ?? ''))?.includes('_ref') === true,
    'it is offloaded',
  )
  await button.waitFor({ state: 'detached' })
  expect(await rawMetadata(environment, ids[1] ?? '')).not.toContain('_ref')

  const all = page.getByRole('button', { name: 'Retry all' })
  await all.click()
  await page.keyboard.press('Escape')
  expect(await rawMetadata(environment, ids[1] ?? '')).not.toContain('_ref')
  await all.click()
  await page.getByRole('dialog').getByRole('button', { name: 'Retry all' }).click()
  await page.getByText(/rows are in the queue again/).waitFor()
  await page.getByText('No row has been given up').waitFor()
  await drained(environment)
  for (const id of ids) expect(await rawMetadata(environment, id)).toContain('_ref')
})

test('a payload is shown digit for digit, laid out or as it is, and can be downloaded', async () => {
  const text = '[12345678901234567890.5, {"a": 1.10, "b": []}, "a \\"quoted\\" {brace}"]'
  const page = await dashboard()
  await lookUp(page, await offloadedRow(`{"tool_interactions": ${text}}`))
  const artifact = page.getByRole('article', { name: /^Artifact/ })
  await artifact.getByText(/tenants\/[0-9a-f-]{36}\/assistant_message_tool_interactions\//).waitFor()
  await artifact.getByRole('button', { name: 'Show the payload' }).click()
  const shown = artifact.locator('pre')
  await shown.waitFor()
  expect(await shown.textContent()).toBe(
    '[\n  12345678901234567890.5,\n  {\n    "a": 1.10,\n    "b": []\n  },\n  "a \\"quoted\\" {brace}"\n]',
  )
  await artifact.getByRole('button', { name: 'Exactly as stored' }).click()
  expect(await shown.textContent()).toBe(text)
  const [download] = await Promise.all([
    page.waitForEvent('download'),
    artifact.getByRole('button', { name: 'Download' }).click(),
  ])
  expect(await readFile(await download.path(), 'utf8')).toBe(text)
})

test('whatever is called whatever: it is text, never markup', async () => {
  const evil = `"><img src=x onerror="window.hacked=1"><script>window.hacked=2</script>`
  const tenant = randomUUID()
  await environment.admin.query(
    `insert into artifact_refs (tenant_id, kind, entity_type, entity_id, r2_key, content_type, size_bytes, created_at)
     values ($1::uuid, $2, $2, $1::uuid, 'tenants/' || $1::text || '/' || $2, $2, 900000000, now())`,
    [tenant, evil],
  )
  await environment.admin.query(
    `insert into lighter.failed_jobs (source_id, row_id, attempts, enqueued_at, last_error)
     select id, $1::text, 3, now(), $1::text from lighter.sources limit 1`,
    [evil],
  )
  await environment.admin.query(
    `insert into lighter.sweep_runs (sweep, started_at, finished_at, dry_run, error, counts)
     values ('verify', now(), now(), false, $1::text, jsonb_build_object($1::text, 1)), ('orphans', now(), now(), false, null, jsonb_build_object($1::text, 1))`,
    [evil],
  )
  try {
    const page = await dashboard()
    await page.locator('#failures td.error', { hasText: evil }).waitFor()
    await page.locator('#failures').getByRole('button', { name: evil, exact: true }).click()
    await page.locator('#lookup .message-bad').waitFor()
    await page.locator('#sweeps .error', { hasText: evil }).waitFor()
    await page.locator('#storage', { hasText: evil }).waitFor()
    await lookUp(page, await offloadedRow(JSON.stringify({ tool_interactions: [evil] })))
    await page.getByRole('button', { name: 'Show the value' }).click()
    await page.locator('pre', { hasText: 'window.hacked' }).waitFor()
    const { rows } = await environment.admin.query<{ id: string }>(
      'select id from artifact_refs where kind = $1',
      [evil],
    )
    await page.getByLabel('Artifact id').fill(rows[0]?.id ?? '')
    await page.getByLabel('Artifact id').press('Enter')
    await page.getByRole('article', { name: `Artifact ${rows[0]?.id}` }).waitFor()
    expect(await page.evaluate(() => 'hacked' in window)).toBe(false)
    expect(await page.locator('main img').count()).toBe(0)
    expect(await page.locator('main script').count()).toBe(0)
  } finally {
    await environment.admin.query('delete from artifact_refs where kind = $1', [evil])
    await environment.admin.query('delete from lighter.failed_jobs where row_id = $1', [evil])
    await environment.admin.query('delete from lighter.sweep_runs')
  }
})

test('the scheme follows the system until one is chosen, which is remembered', async () => {
  const page = await dashboard({ colorScheme: 'dark' })
  const background = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor)
  const toggle = page.getByRole('button', { name: 'Dark' })
  const dark = await background()
  expect(await toggle.getAttribute('aria-pressed')).toBe('true')
  await toggle.click()
  expect(await background()).not.toBe(dark)
  await page.reload()
  await untilLive(page)
  expect(await background()).not.toBe(dark)
  expect(await toggle.getAttribute('aria-pressed')).toBe('false')
})

test('a daemon that goes is told, and its figures go on when it is back', async () => {
  const passing = await startApi(environment, { worker: false, env })
  const page = await dashboard({}, passing)
  await passing.daemon.stop()
  await page.getByRole('alert').filter({ hasText: 'tried again' }).waitFor()
  await page.getByText('Not live').waitFor()
  const back = await startApi(environment, {
    worker: false,
    env: { ...env, API_PORT: new URL(passing.url).port },
  })
  try {
    await page.locator('#pulse[data-state="live"]').waitFor()
    await page.getByRole('alert').filter({ hasText: 'tried again' }).waitFor({ state: 'hidden' })
  } finally {
    await back.daemon.stop()
  }
})

test('when the session has ended the key is asked for again', async () => {
  const page = await dashboard()
  await page.context().clearCookies()
  await page.getByLabel('Row id').fill(randomUUID())
  await page.getByLabel('Row id').press('Enter')
  await page.getByLabel('Service key').waitFor()
  await signIn(page, serviceKey)
  await page.getByRole('button', { name: 'Sign out' }).click()
  await page.getByLabel('Service key').waitFor()
  await page.goBack().catch(() => undefined)
  await page.goto('/dashboard')
  await page.getByLabel('Service key').waitFor()
})
