// What the store is like from one moment to the next: mostly fair, with showers, storms and outages.
import { between, chance, type Random } from '../src/demo/random.ts'

/** What may happen to a request. */
export const faults = [
  '429',
  '500',
  '503',
  'no answer',
  'reset in the request',
  'reset in the answer',
  'answer lost',
  'done but answered 500',
  'lands late',
] as const
export type Fault = (typeof faults)[number]

export interface Weather {
  /** Chance of a fault per request. */
  rate: number
  /** Of those that get through. */
  longestDelayMs: number
}

export const fair: Weather = { rate: 0, longestDelayMs: 0 }

/** The weather of the next while, and how long it lasts. */
export function nextWeather(random: Random): Weather & { lastsMs: number } {
  const dice = random()
  if (dice < 0.35) return { rate: 0.01, longestDelayMs: 30, lastsMs: between(random, 1500, 4000) }
  if (dice < 0.7) return { rate: 0.06, longestDelayMs: 250, lastsMs: between(random, 1500, 5000) }
  if (dice < 0.9) return { rate: 0.3, longestDelayMs: 600, lastsMs: between(random, 1000, 3000) }
  return { rate: chance(random, 0.5) ? 1 : 0.8, longestDelayMs: 0, lastsMs: between(random, 500, 2000) }
}
