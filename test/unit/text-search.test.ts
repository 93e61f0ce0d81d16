import { describe, expect, test } from 'vitest'
import { createTextSearch } from '../../src/offload/text-search.ts'

const search = (pieces: string[], words = ['"a_ref"', '"metadata_ref"']) => {
  const searched = createTextSearch(words)
  for (const piece of pieces) searched.look(Buffer.from(piece))
  return searched.found()
}

describe('a word is found', () => {
  const text = '{"x": 1, "metadata_ref": "…"}'
  test.each(Array.from({ length: Buffer.byteLength(text) }, (_, at) => at))(
    'wherever the text is cut: at %i',
    at => {
      const bytes = Buffer.from(text)
      const searched = createTextSearch(['"a_ref"', '"metadata_ref"'])
      searched.look(bytes.subarray(0, at))
      searched.look(bytes.subarray(at))
      expect(searched.found()).toBe(true)
    },
  )

  test('however small the pieces are', () => {
    for (const size of [1, 2, 3, 5, 13])
      expect(search(text.match(new RegExp(`.{1,${size}}`, 'gu')) ?? [])).toBe(true)
  })

  test('once for all', () => {
    expect(search(['"a_ref"', 'x'.repeat(100)])).toBe(true)
  })
})

test('parts of different words are none, nor is a word that is broken off', () => {
  expect(search(['{"a_', 'metadata_ref": 1}'])).toBe(false)
  expect(search(['"metadata_', 'x', 'ref"'])).toBe(false)
  expect(search(['"metadata_ref'])).toBe(false)
  expect(search([])).toBe(false)
  expect(search(['anything'], [])).toBe(false)
})
