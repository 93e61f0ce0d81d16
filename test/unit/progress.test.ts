import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { createProgress } from '../../src/cli/progress.ts'

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['performance'] })
  vi.stubEnv('TERM', 'xterm')
})
afterEach(() => {
  vi.useRealTimers()
  vi.unstubAllEnvs()
})

function createStream(terminal: { columns: number } | null) {
  const written: string[] = []
  return {
    written,
    ...(terminal !== null && { isTTY: true, ...terminal }),
    write: (text: string) => written.push(text),
  }
}

test('a terminal has one line with a bar, written over and cut to its width', () => {
  const stream = createStream({ columns: 50 })
  const progress = createProgress(false, stream)
  vi.advanceTimersByTime(200)
  progress.update('half of it, and more to say than fits the line', 0.5)
  vi.advanceTimersByTime(50)
  progress.update('too soon', 0.6)
  vi.advanceTimersByTime(100)
  progress.update('of what nobody knows the whole')
  progress.end()
  expect(stream.written).toEqual([
    '\r\x1b[2K[##########          ]  50 % half of it, and more',
    '\r\x1b[2Kof what nobody knows the whole',
    '\r\x1b[2K',
  ])
})

test('a share beyond the estimate is all of it', () => {
  const stream = createStream({ columns: 80 })
  const progress = createProgress(false, stream)
  vi.advanceTimersByTime(200)
  progress.update('rows', 1.2)
  expect(stream.written).toEqual([`\r\x1b[2K[${'#'.repeat(20)}] 100 % rows`])
})

test.each([
  ['what is no terminal', null, 'xterm'],
  ['a dumb terminal', { columns: 80 }, 'dumb'],
])('%s gets whole lines, of a new part at once, else every ten seconds', (_, terminal, term) => {
  vi.stubEnv('TERM', term)
  const stream = createStream(terminal)
  const progress = createProgress(false, stream)
  progress.begin('writing')
  progress.update('too soon', 0.1)
  vi.advanceTimersByTime(11_000)
  progress.update('written 10', 0.5)
  progress.end()
  expect(stream.written).toEqual(['writing\n', 'written 10\n'])
})

test('with --json nothing is written', () => {
  const stream = createStream({ columns: 80 })
  const progress = createProgress(true, stream)
  progress.begin('writing')
  vi.advanceTimersByTime(11_000)
  progress.update('written 10', 0.5)
  progress.end()
  expect(stream.written).toEqual([])
})
