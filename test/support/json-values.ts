// JSON that has broken programs which parse what they should copy. Each is text, and a valid jsonb.
export const oddValues: [what: string, json: string][] = [
  ['integers beyond 2^53', '[12345678901234567890, -9007199254740993]'],
  ['decimals beyond a double', '[12345678901234567890.5, 0.1000000000000000055511151231257827]'],
  ['exponents beyond a double', '[1e400, -1E+400, 1e-400]'],
  ['a number of 2,000 digits', `[1${'0'.repeat(1999)}]`],
  ['trailing zeros and minus zero', '[1.0, 1.00, -0, -0.0, 100e0]'],
  ['escapes', String.raw`["\"\\\/\b\f\n\r\t", "\u001f", "\u007f", "C:\\dir\\"]`],
  [
    'unicode',
    String.raw`["é", "日本語", "😀", "\ud83d\ude00", "e\u0301", "\u2028\u2029", "\ufeff", "\u202e"]`,
  ],
  ['braces and quotes in strings', String.raw`["}{][\",:", "{\"a\": [1]}"]`],
  [
    'odd keys',
    String.raw`[{"": 1, " ": 2, "a.b": 3, "\"": 4, "\\": 5, "é": 6, "__proto__": 7, "constructor": 8}]`,
  ],
  ['keys of 100,000 characters', `[{"${'k'.repeat(100_000)}": 1}]`],
  ['nesting of 1,000 levels', `${'['.repeat(1000)}1${']'.repeat(1000)}`],
  ['literals', '[true, false, null]'],
  ['empty things', '[[], {}, ""]'],
  [
    'text that looks like a pointer',
    '[{"tool_interactions_ref": "00000000-0000-7000-8000-000000000000", "artifact_metadata_ref": null}]',
  ],
]
