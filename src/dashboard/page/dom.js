// Elements are made, and texts set; markup is never put together of text.

/** @typedef {Node | string | number | null | undefined | false} Child */

/**
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {Record<string, unknown>} [attributes] functions become listeners; true stands alone; false, null and undefined are left out
 * @param {...Child | Child[]} children
 * @returns {HTMLElementTagNameMap[T]}
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue
    if (typeof value === 'function') element.addEventListener(name, /** @type {EventListener} */ (value))
    else element.setAttribute(name, value === true ? '' : String(value))
  }
  element.append(...nodesOf(children))
  return element
}

/** @param {(Child | Child[])[]} children */
function nodesOf(children) {
  return children
    .flat()
    .filter(child => child !== null && child !== undefined && child !== false)
    .map(child => (child instanceof Node ? child : String(child)))
}

/**
 * @param {Element} element
 * @param {...Child | Child[]} children
 */
export function fill(element, ...children) {
  element.replaceChildren(...nodesOf(children))
}

/**
 * @param {Element} element
 * @param {string} text
 */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text
}

/** @param {string} id */
export function byId(id) {
  const element = document.getElementById(id)
  if (element === null) throw new Error(`the page has no #${id}`)
  return element
}

/** @param {string} name */
export function meta(name) {
  return document.querySelector(`meta[name="${name}"]`)?.getAttribute('content') ?? ''
}

/**
 * Said by screen readers when they have finished what they say.
 * @param {string} text
 */
export function announce(text) {
  setText(byId('announcer'), text)
}

/**
 * A section's content, below its heading.
 * @param {string} id
 * @param {...Child} children
 */
export function openSection(id, ...children) {
  const section = byId(id)
  const heading = section.querySelector('h2')
  fill(section, heading, ...children)
  section.setAttribute('aria-busy', 'false')
  return section
}

/**
 * @param {string} title
 * @param {{class?: string, tools?: Child, note?: Child}} options
 * @param {...Child} children
 */
export function panel(title, options, ...children) {
  return h(
    'div',
    { class: `panel ${options.class ?? ''}` },
    h(
      'div',
      { class: 'panel-head' },
      h('h3', {}, title),
      options.note && h('p', { class: 'note' }, options.note),
      options.tools,
    ),
    ...children,
  )
}

/** @param {...Child} children what is the case, and what to do */
export function emptyState(...children) {
  return h('p', { class: 'empty' }, ...children)
}

/** @param {string} text */
export const code = text => h('code', {}, text)
