// Markup whose holes are escaped, whatever is put into them; only what was made here is taken as it is.

class Html {
  readonly markup: string
  constructor(markup: string) {
    this.markup = markup
  }
}

export type { Html }

const entities: Record<string, string> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  '"': '&quot;',
  "'": '&#39;',
}

/** For text and for attribute values in quotes. */
export function html(parts: TemplateStringsArray, ...holes: (string | Html)[]): Html {
  return new Html(
    parts.reduce((markup, part, i) => {
      const hole = holes[i - 1] ?? ''
      return markup + (hole instanceof Html ? hole.markup : escaped(hole)) + part
    }),
  )
}

function escaped(text: string): string {
  return text.replace(/[&<>"']/g, character => entities[character] ?? '')
}
