// Arrays as parameters, in the text form that Postgres reads. node-postgres writes them too, but runs two
// regular expressions over every element; most of ours are ids and numbers that need no quotes.

const plain = /^[A-Za-z0-9_./:+-]+$/

/** @see https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO */
export function arrayText(values: readonly (string | number | boolean | null)[]): string {
  let text = '{'
  for (const value of values) {
    if (text.length > 1) text += ','
    if (value === null) text += 'NULL'
    else if (typeof value !== 'string') text += value
    else if (plain.test(value) && value.toUpperCase() !== 'NULL') text += value
    else text += `"${value.replace(/["\\]/g, '\\$&')}"`
  }
  return `${text}}`
}
