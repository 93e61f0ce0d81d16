// Puts the page together and keeps it up to date.
import { redrawCharts } from './charts.js'
import { announce, byId, setText } from './dom.js'
import { createFailures } from './failures.js'
import { watchFeed } from './feed.js'
import { formatClock, formatCount } from './format.js'
import { createLookup } from './lookup.js'
import { createOverview } from './overview.js'
import { createQueue } from './queue.js'
import { post } from './request.js'
import { createStorage } from './storage.js'
import { createSweeps } from './sweeps.js'

const lookup = createLookup()
const overview = createOverview()
const queue = createQueue()
const failures = createFailures(lookup.lookUp)
const storage = createStorage()
const sweeps = createSweeps()

/** A break shorter than this is not worth a word: the stream is just opened again. */
const patienceMs = 6000
/** @type {ReturnType<typeof setTimeout> | undefined} */
let patience

/** @param {'live' | 'lost'} state @param {string | null} message */
function showState(state, message) {
  const waits = state === 'lost' && message === null
  // The tries that fail meanwhile do not make it longer.
  if (waits && patience !== undefined) return
  clearTimeout(patience)
  patience = undefined
  const show = () => {
    const lost = state === 'lost'
    if (byId('pulse').dataset.state !== state) {
      byId('pulse').dataset.state = state
      announce(lost ? 'The figures are no longer live.' : 'The figures are live.')
    }
    if (lost) setText(byId('pulse-text'), 'Not live')
    byId('trouble').hidden = !lost
    setText(
      byId('trouble'),
      message ??
        (lost
          ? 'The daemon does not answer. The figures below are the last that came; it is tried again.'
          : ''),
    )
  }
  if (waits) patience = setTimeout(show, patienceMs)
  else show()
}

let said = ''
watchFeed({
  fast: fast => {
    setText(byId('pulse-text'), `Live, ${formatClock(fast.at)}`)
    overview.fast(fast)
    queue.fast(fast)
    failures.fast(fast)
    // Only what an operator would want to be told, not every figure.
    const paused = fast.daemons.filter(d => d.state === 'paused' || d.silent).length
    const now =
      paused === 0
        ? ''
        : `${formatCount(paused)} of ${formatCount(fast.daemons.length)} daemons are in trouble.`
    if (now !== said && now !== '') announce(now)
    said = now
  },
  slow: slow => {
    overview.slow(slow)
    storage.slow(slow)
    sweeps.slow(slow)
  },
  state: showState,
})

const theme = byId('theme')
const isDark = () => {
  const chosen = document.documentElement.dataset.theme
  return chosen === undefined ? matchMedia('(prefers-color-scheme: dark)').matches : chosen === 'dark'
}
const showTheme = () => theme.setAttribute('aria-pressed', String(isDark()))
theme.addEventListener('click', () => {
  const chosen = isDark() ? 'light' : 'dark'
  document.documentElement.dataset.theme = chosen
  try {
    localStorage.setItem('lighter-theme', chosen)
  } catch {
    // Then it lasts as long as the page.
  }
  showTheme()
  redrawCharts()
})
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', showTheme)
showTheme()

document.getElementById('sign-out')?.addEventListener('click', async () => {
  await post('logout').catch(() => undefined)
  location.reload()
})
