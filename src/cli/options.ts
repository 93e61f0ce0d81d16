// Parsers of option values.
import { InvalidArgumentError } from 'commander'
import { unitMs } from '../backfill/age.ts'

export function wholeNumber(value: string): number {
  const number = Number(value)
  if (value.trim() === '' || !Number.isSafeInteger(number) || number < 0) {
    throw new InvalidArgumentError('not a whole number')
  }
  return number
}

export function uuid(value: string): string {
  if (!/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(value)) {
    throw new InvalidArgumentError('not a uuid')
  }
  return value.toLowerCase()
}

export function positiveNumber(value: string): number {
  const number = Number(value)
  if (value.trim() === '' || !Number.isFinite(number) || number <= 0) {
    throw new InvalidArgumentError('not a number above zero')
  }
  return number
}

/** @returns the duration as SQL takes it; `-1 s`, which SQL takes for the default, for "default" */
export function durationOrDefault(value: string): string {
  if (value === 'default') return '-1 s'
  if (value === '0') return '0 s'
  const [, count, unit] = /^(\d{1,6})([smhdw])$/.exec(value) ?? []
  if (unit === undefined) throw new InvalidArgumentError('not a duration: 0, 30s, 5m, 24h, 2d, or default')
  return `${(Number(count) * (unitMs[unit] ?? 0)) / 1000} s`
}

const mostBytes = 2_147_483_647

/** @param least a smaller number is refused: SQL would take 0 for the default, or refuse it later @returns 0 for "default" */
export const bytesOrDefault =
  (least: number) =>
  (value: string): number => {
    if (value === 'default') return 0
    const bytes = Number(value)
    if (value.trim() === '' || !Number.isSafeInteger(bytes) || bytes < least || bytes > mostBytes) {
      throw new InvalidArgumentError(
        `not a whole number of bytes${least > 0 ? ` from ${least} on` : ''}, nor default`,
      )
    }
    return bytes
  }
