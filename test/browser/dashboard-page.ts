// The dashboard as a person uses it.
import type { Page } from 'playwright-core'

/** From the login page to the first figures. */
export async function signIn(page: Page, serviceKey: string): Promise<void> {
  await page.goto('/dashboard')
  await page.getByLabel('Service key').fill(serviceKey)
  await page.getByRole('button', { name: 'Sign in' }).click()
  await untilLive(page)
}

/** Figures have come, the large part of them too. */
export async function untilLive(page: Page): Promise<void> {
  await page.locator('#pulse[data-state="live"]').waitFor()
  await page.locator('main:not(:has(section[aria-busy="true"]))').waitFor()
}
