// Why a row stays as it is, in the words of its dead letter.

import type { Source } from '../source/sources.ts'
import { longNumbersTextBytes } from './long-numbers.ts'
import type { PlannedRow } from './plan.ts'
import { payloadTooLarge, rowTooLarge } from './stream.ts'

export function rowsHidden(source: Source, remedy: string): string {
  return `row-level security hides rows of ${source.tableSql}, or of its parent, from lighter_daemon. ${remedy}`
}

export function noTenant(source: Source): string {
  return `no tenant: ${source.tenantColumn} of the row${source.parents.map(({ tableSql }) => `'s ${tableSql}`).join('')} is null or missing`
}

export function ambiguousKey(source: Source): string {
  return `several rows have this key, or its row has several tenants: give ${source.tableSql} a valid unique index on ${source.key.map(({ name }) => name).join(', ')} again, then lighter retry`
}

export function tooLarge(row: PlannedRow, maxPayloadBytes: number): string {
  if (row.longNumbers)
    return `a payload has numbers that would be written out to ${row.largestBytes} bytes of text, over ${longNumbersTextBytes}: it stays in the row`
  if (row.largestBytes > maxPayloadBytes) return payloadTooLarge(row.largestBytes, maxPayloadBytes).message
  const rowBytes = row.payloads.reduce((sum, p) => sum + p.sizeBytes, row.heldBytes)
  return rowTooLarge(rowBytes, maxPayloadBytes).message
}

export function lostPointer(): string {
  return 'lost_pointer: the row points to an artifact that its tenant does not have: it was moved here from another tenant, or what it points to has expired, or the pointer was made up. What was put on top of it could not be read back, so the row stays as it is: take the pointer away, or move the row back and restore it, then lighter retry'
}

export const whenFailed = (message: string): string => `when_sql fails on this row: ${message}`
