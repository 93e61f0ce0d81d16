// Whether a request comes from a page of ours: what changes something, or tells a payload, is refused to all others.
import type { IncomingHttpHeaders } from 'node:http'
import { ApiError } from '../api/errors.ts'

/**
 * Browsers say it by themselves (Sec-Fetch-Site, on HTTPS and on this machine); elsewhere the page's origin must be
 * where the request goes. SameSite cookies alone would let a page on another port of the same host in.
 * @throws {ApiError} 403 `cross_origin`
 */
export function requireSameOrigin(headers: IncomingHttpHeaders, publicUrl: string | undefined): void {
  const site = headers['sec-fetch-site']
  if (site === 'same-origin') return
  if (site === undefined && headers.origin !== undefined && URL.canParse(headers.origin)) {
    const origin = new URL(headers.origin)
    if (origin.host === headers.host) return
    if (publicUrl !== undefined && origin.origin === new URL(publicUrl).origin) return
  }
  throw new ApiError(
    403,
    'cross_origin',
    'the request does not come from a page of this dashboard; behind a proxy that changes Host, set API_PUBLIC_URL',
  )
}
