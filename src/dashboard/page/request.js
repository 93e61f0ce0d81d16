// Requests to our own server.
import { meta } from './dom.js'

export class RequestError extends Error {
  /**
   * @param {number} status
   * @param {string} code
   * @param {string} message
   */
  constructor(status, code, message) {
    super(message)
    this.status = status
    this.code = code
  }
}

/**
 * @param {string} path
 * @param {Record<string, string>} [query]
 */
export function get(path, query = {}) {
  const search = new URLSearchParams(query).toString()
  return send(`dashboard/${path}${search === '' ? '' : `?${search}`}`, {})
}

/**
 * @param {string} path
 * @param {object} [body]
 */
export function post(path, body = {}) {
  return send(`dashboard/${path}`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', 'x-csrf-token': meta('csrf-token') },
    body: JSON.stringify(body),
  })
}

/**
 * @param {string} url
 * @param {RequestInit} init
 * @returns {Promise<any>}
 */
async function send(url, init) {
  let response
  try {
    response = await fetch(url, { ...init, credentials: 'same-origin', redirect: 'error' })
  } catch {
    throw new RequestError(0, 'unreachable', 'The daemon does not answer. Is it running?')
  }
  // The session has ended: the same address asks for the key again.
  if (response.status === 401) location.reload()
  const answer = await response.json().catch(() => ({}))
  if (!response.ok) {
    const message = typeof answer.message === 'string' ? answer.message : `status ${response.status}`
    throw new RequestError(response.status, String(answer.code), sentence(message))
  }
  return answer
}

/** @param {string} text */
const sentence = text => `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.?!]$/.test(text) ? '' : '.'}`
