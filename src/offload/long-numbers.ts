// Numbers whose text is far longer than what they take in a row: 1e131071 takes 12 bytes, and is written with 131,072
// digits. 31 KB of them are 460 MB of text, which Postgres takes seconds and a gigabyte to render. Everything else in
// a document takes at most six times its binary form as text (control characters).
//
// So no statement renders a document before it knows that no number of it is long. One with long numbers is weighed
// without rendering it, and if it is to be offloaded at all that is done alone, with little time.

/** In bytes. What is written out longer, because of its numbers, stays in its row as a dead letter. */
export const longNumbersTextBytes = 64 * 1024 * 1024

/** Time to render it and read it. An honest one takes a second. */
export const longNumbersTimeoutMs = 5000

// Whatever is no number makes `abs()` fail, which counts as false. Zero is looked at again, since 0e-16383 is one: a
// division has as many digits as its operands have decimal places, which nothing else in a path tells, and (x * 0 + 1) / 3
// is above 0.333... of 45 digits for an x with more. Numbers up to 1e40 and down to 1e-40 take as text at most six times
// their binary form, like everything else. (Only SQL can compute a larger one with many zeros behind the point.)
// The first filter turns away what is no number, the second nearly all numbers. Costs 3 µs for a KB of real documents, four fifths
// of rendering it.
const longNumbers = `'strict $.**{last} ? (@ != 1) ? (@ > 1e40 || @ < 1e-40) ? (@.abs() > 1e40 || @.abs() < 1e-40) ? (@.abs() > 1e40 || (@ * 0 + 1) / 3 > 0.${'3'.repeat(45)})'::jsonpath`

/** True of an array or object with long numbers. */
export function hasLongNumbersSql(doc: string): string {
  return `jsonb_path_exists(${doc}, ${longNumbers})`
}

const numbersSql = (doc: string) =>
  // Not jsonb_path_query by itself, which takes quadratic time in PostgreSQL.
  `jsonb_array_elements(jsonb_path_query_array(${doc}, 'strict $.** ? (@.type() == "number")')) n`

/** What a document's text may take because of its numbers, and its binary form once. Nothing is rendered. */
export function textBytesBoundSql(doc: string): string {
  // numeric_send: number of digits, weight (of the first digit, to the base of 10,000), sign, decimal places; each of
  // two bytes.
  const weight = `(get_byte(b, 2) << 8 | get_byte(b, 3))`
  return `(select pg_column_size(${doc})
             + coalesce(sum(case when ${weight} < 32768 then 4 * (${weight} + 1) else 1 end + (get_byte(b, 6) << 8 | get_byte(b, 7)) + 2), 0)
        from ${numbersSql(doc)} cross join lateral (select numeric_send(n::numeric) as b offset 0) s)`
}

/**
 * What a document takes without its numbers, in bytes of binary form. One with long numbers is over the threshold only
 * if this is: because of numbers alone it is not offloaded, since what it takes in its row is little.
 */
export function bytesWithoutNumbersSql(doc: string): string {
  // Inside a document a number has 4 bytes of entry, and is padded to 4.
  return `(select pg_column_size(${doc}) - coalesce(sum((pg_column_size(n::numeric) + 7) & -4), 0) from ${numbersSql(doc)})`
}
