// JSON laid out for reading, as text from end to end: no digit of a number is lost, and a text that was cut off is
// laid out as far as it goes.

const indent = '  '

/** @param {string} text */
export function layOut(text) {
  const out = []
  let depth = 0
  for (let i = 0; i < text.length; i++) {
    const c = text.charAt(i)
    if (c === '"') {
      const end = endOfString(text, i)
      out.push(text.slice(i, end))
      i = end - 1
    } else if (c === '{' || c === '[') {
      const close = /\S/.exec(text.slice(i + 1, i + 50))
      if (close !== null && (close[0] === '}' || close[0] === ']')) {
        out.push(c, close[0])
        i += close.index + 1
      } else out.push(c, '\n', indent.repeat(++depth))
    } else if (c === '}' || c === ']') {
      depth = Math.max(0, depth - 1)
      out.push('\n', indent.repeat(depth), c)
    } else if (c === ',') out.push(',\n', indent.repeat(depth))
    else if (c === ':') out.push(': ')
    else if (!/\s/.test(c)) out.push(c)
  }
  return out.join('')
}

/** @param {string} text @param {number} start */
function endOfString(text, start) {
  for (let i = start + 1; i < text.length; i++) {
    if (text.charAt(i) === '\\') i++
    else if (text.charAt(i) === '"') return i + 1
  }
  return text.length
}
