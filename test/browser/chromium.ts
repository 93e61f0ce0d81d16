// Debian's Chromium (CHROMIUM names another), and pages of it that say what they should not have done.
import { existsSync } from 'node:fs'
import { type Browser, type BrowserContextOptions, chromium, type Page } from 'playwright-core'

const executablePath = process.env.CHROMIUM ?? '/usr/bin/chromium'

export async function launchChromium(): Promise<Browser> {
  if (!existsSync(executablePath)) {
    throw new Error(
      `there is no ${executablePath}: apt-get install chromium, or set CHROMIUM to where a Chromium is`,
    )
  }
  return chromium.launch({
    executablePath,
    args: [
      '--headless',
      '--no-sandbox',
      '--disable-gpu',
      '--disable-quic',
      '--no-first-run',
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-sync',
    ],
  })
}

export interface WatchedPage {
  page: Page
  /** Requests to anywhere but the daemon, policy violations, errors of scripts and of the console. */
  faults: string[]
  close(): Promise<void>
}

/** A page with a session of its own. @param origin the only one that it may ask */
export async function openPage(
  browser: Browser,
  origin: string,
  options: BrowserContextOptions = {},
): Promise<WatchedPage> {
  const context = await browser.newContext({ baseURL: origin, reducedMotion: 'reduce', ...options })
  const page = await context.newPage()
  const faults: string[] = []
  page.on('request', request => {
    const url = request.url()
    if (new URL(url).origin !== origin && !url.startsWith('data:')) faults.push(`a request to ${url}`)
  })
  page.on('pageerror', error => faults.push(`an error: ${error.message}`))
  page.on('console', message => {
    // What the server refuses is the test's to look at; a policy violation is an error of the console, too.
    if (message.type() === 'error' && !message.text().startsWith('Failed to load resource'))
      faults.push(`the console says: ${message.text()}`)
  })
  return { page, faults, close: () => context.close() }
}
