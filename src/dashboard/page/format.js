// Figures as a person reads them.

const whole = new Intl.NumberFormat('en')
const compact = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 1 })

/** @param {number} n */
export const formatCount = n => whole.format(n)

/** @param {number} n */
export const formatShort = n =>
  Math.abs(n) < 10_000 ? whole.format(Math.round(n * 10) / 10) : compact.format(n)

/**
 * Of 1000, as the bucket's bill has them.
 * @param {number} bytes
 */
export function formatBytes(bytes) {
  let value = Math.abs(bytes)
  const sign = bytes < 0 ? '−' : ''
  for (const unit of ['B', 'KB', 'MB', 'GB', 'TB']) {
    if (value < 999.5 || unit === 'TB') {
      const digits = unit === 'B' || value >= 100 ? 0 : value >= 10 ? 1 : 2
      return `${sign}${value.toFixed(digits)} ${unit}`
    }
    value /= 1000
  }
  return `${bytes} B`
}

/** @param {number | null | undefined} ms */
export function formatMs(ms) {
  if (ms === null || ms === undefined) return '–'
  return ms < 999.5 ? `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms` : formatSeconds(ms / 1000)
}

/** @param {number | null} seconds */
export function formatSeconds(seconds) {
  if (seconds === null) return '–'
  const s = Math.max(0, seconds)
  if (s < 9.95) return `${s.toFixed(1)} s`
  if (s < 119.5) return `${Math.round(s)} s`
  if (s < 7170) return `${Math.round(s / 60)} min`
  if (s < 172_000) return `${Math.round(s / 3600)} h`
  return `${Math.round(s / 86_400)} days`
}

/**
 * @param {string} at
 * @param {number} [now]
 */
export function formatAgo(at, now = Date.now()) {
  const seconds = (now - Date.parse(at)) / 1000
  return seconds < 5 ? 'just now' : `${formatSeconds(Math.round(seconds))} ago`
}

/** @param {number} dollars */
export function formatUsd(dollars) {
  const value = Math.abs(dollars)
  if (value > 0 && value < 0.01) return 'under 1 ¢'
  const digits = value === 0 || value >= 1000 ? 0 : value >= 1 ? 2 : 3
  return `${dollars < 0 ? '−' : ''}$${value.toLocaleString('en', { minimumFractionDigits: digits, maximumFractionDigits: digits })}`
}

/** @param {number | null} share */
export const formatShare = share => (share === null ? '–' : `${Math.round(share * 100)} %`)

/** @param {number} ratio */
export const formatRatio = ratio => `${ratio >= 10 ? Math.round(ratio) : ratio.toFixed(1)}×`

const pad = (/** @type {number} */ n) => String(n).padStart(2, '0')

/**
 * In the viewer's time zone.
 * @param {string | number} at
 */
export function formatTime(at) {
  const t = new Date(at)
  return `${t.getFullYear()}-${pad(t.getMonth() + 1)}-${pad(t.getDate())} ${pad(t.getHours())}:${pad(t.getMinutes())}:${pad(t.getSeconds())}`
}

/** @param {string | number} at */
export const formatClock = at => formatTime(at).slice(11)

/** @param {string} name */
export const spaced = name => name.replaceAll('_', ' ')
