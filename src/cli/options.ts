// Parsers of option values.
import { InvalidArgumentError } from 'commander'

export function wholeNumber(value: string): number {
  const number = Number(value)
  if (value.trim() === '' || !Number.isSafeInteger(number) || number < 0) {
    throw new InvalidArgumentError('not a whole number')
  }
  return number
}
