// A message or an artifact: where its payloads are, how they are, and, for those who may, what is in them.
import { byId, code, emptyState, fill, h, meta, openSection, panel, setText } from './dom.js'
import { formatBytes, formatCount, formatTime, spaced } from './format.js'
import { layOut } from './json-text.js'
import { get, post } from './request.js'

/** @typedef {import('../lookup.ts').ArtifactFacts} Artifact */
/** @typedef {import('../lookup.ts').RowFacts} Row */
/** @typedef {import('../payload.ts').ShownPayload} Shown */

const mayRead = meta('payloads') === 'on'

/** @type {Record<Artifact['state'], [string, string]>} */
const states = {
  live: ['Alive', 'good'],
  expiring: ['Expires', 'warn'],
  deleted: ['Deleted', 'bad'],
  purged: ['Purged', 'bad'],
  damaged: ['Damaged', 'bad'],
}

/** @param {[string, import('./dom.js').Child | import('./dom.js').Child[]][]} facts */
const factList = facts =>
  h(
    'dl',
    { class: 'facts' },
    facts
      .filter(([, value]) => value !== null && value !== undefined && value !== false)
      .map(([term, value]) => h('div', {}, h('dt', {}, term), h('dd', {}, value))),
  )

/** @param {Artifact} a */
function artifactCard(a) {
  const [state, mood] = states[a.state]
  const of = a.object
  const where =
    a.byte_offset === null
      ? 'the whole object'
      : `a frame of ${formatBytes(a.byte_length ?? 0)} at byte ${formatCount(a.byte_offset)}, the payload at byte ${formatCount(a.frame_offset ?? 0)} of its text`
  const readable = a.deleted_at === null
  return h(
    'article',
    { class: 'card', 'aria-label': `Artifact ${a.id}` },
    h('h4', {}, spaced(a.kind), ' ', h('span', { class: `badge badge-${mood}` }, state)),
    factList([
      ['Artifact', code(a.id)],
      ['Tenant', code(a.tenant_id)],
      [
        'From',
        a.source === null
          ? 'stored by an application'
          : [
              a.source,
              ' ',
              code(a.row_id ?? '–'),
              a.field === null ? ', the whole value' : `, field ${a.field}`,
            ],
      ],
      ['Belongs to', a.entity_type === null ? null : [a.entity_type, ' ', code(a.entity_id ?? '–')]],
      [
        'Size',
        a.size_bytes === null
          ? 'not known'
          : `${formatBytes(a.size_bytes)} (${formatCount(a.size_bytes)} bytes)`,
      ],
      [
        'Type',
        [
          a.content_type ?? 'not known',
          a.content_encoding !== null && `, compressed with ${a.content_encoding}`,
        ],
      ],
      ['Object', code(a.r2_key)],
      ['Place in it', where],
      [
        'Object is',
        of === null
          ? 'not on our account: an application stored it'
          : `${of.state}, ${of.artifacts === 1 ? 'loose' : `a pack of ${formatCount(of.artifacts)} artifacts, ${formatCount(of.live_artifacts)} alive`}${of.byte_length === null ? '' : `, ${formatBytes(of.byte_length)}`}`,
      ],
      ['SHA-256', a.sha256 === null ? 'not recorded, so it is not checked' : code(a.sha256)],
      ['Stored', formatTime(a.created_at)],
      ['Retention', a.retention ?? 'kept for ever'],
      ['Expires', a.expires_at && formatTime(a.expires_at)],
      [
        'Deleted',
        a.deleted_at &&
          `${formatTime(a.deleted_at)}${a.deleted_reason === null ? '' : ` (${a.deleted_reason})`}`,
      ],
      ['Purged', a.purged_at && formatTime(a.purged_at)],
      [
        'Damage',
        a.damage && h('span', { class: 'error' }, `${a.damage}, found ${formatTime(a.damaged_at ?? '')}`),
      ],
    ]),
    readable
      ? payloadViewer('payload', { tenant_id: a.tenant_id, id: a.id })
      : h('p', { class: 'note' }, 'Its payload can not be read any more.'),
  )
}

/**
 * @param {string} what
 * @param {{tenant_id: string, id: string} | {source_id: number, row_id: string}} key
 */
function payloadViewer(what, key) {
  if (!mayRead)
    return h(
      'p',
      { class: 'note' },
      'Payloads are not shown here: ',
      code('DASHBOARD_PAYLOADS=on'),
      ' lets the dashboard.',
    )
  const home = h('div', { class: 'payload', 'aria-live': 'polite' })
  const button = h(
    'button',
    {
      type: 'button',
      class: 'button',
      click: async () => {
        if (button.getAttribute('aria-disabled') === 'true') return
        button.setAttribute('aria-disabled', 'true')
        fill(home, h('p', { class: 'note' }, 'Reading and checking it…'))
        try {
          const { payload } = await post('payload', key)
          fill(
            home,
            ...shown(
              payload,
              'id' in key ? `Payload of ${key.id}` : `Value of row ${key.row_id}`,
              'id' in key ? key : null,
            ),
          )
        } catch (error) {
          fill(
            home,
            h('p', { class: 'message message-bad' }, error instanceof Error ? error.message : String(error)),
          )
        } finally {
          button.removeAttribute('aria-disabled')
        }
      },
    },
    `Show the ${what}`,
  )
  return h('div', {}, h('p', {}, button, ' ', h('span', { class: 'note' }, 'That you do is logged.')), home)
}

/**
 * @param {Shown} payload
 * @param {string} name
 * @param {{tenant_id: string, id: string} | null} artifact that can be downloaded
 */
function shown(payload, name, artifact) {
  const size = payload.bytes === null ? '' : formatBytes(payload.bytes)
  const download =
    artifact === null
      ? null
      : h(
          'button',
          { type: 'button', class: 'button button-small', click: () => startDownload(artifact, message) },
          'Download',
        )
  const message = h('span', { class: 'note', role: 'status' })
  const { text } = payload
  if (text === null) return [h('p', {}, `${size}, not text. `, download, message)]
  const pre = h('pre', { tabindex: '0', role: 'region', 'aria-label': name })
  pre.textContent = layOut(text)
  const exact = h(
    'button',
    {
      type: 'button',
      class: 'button button-small',
      'aria-pressed': 'false',
      click: () => {
        const on = exact.getAttribute('aria-pressed') !== 'true'
        exact.setAttribute('aria-pressed', String(on))
        pre.textContent = on ? text : layOut(text)
      },
    },
    'Exactly as stored',
  )
  return [
    h('p', {}, `${size}. `, exact, ' ', download, ' ', message),
    payload.truncated &&
      h(
        'p',
        { class: 'message' },
        `Only the beginning is shown, ${formatBytes(new Blob([text]).size)} of ${size}. `,
        artifact === null
          ? 'The whole: download its artifacts, or lighter hydrate.'
          : 'The whole is for a download.',
      ),
    pre,
  ].filter(each => each !== false)
}

/** @param {{tenant_id: string, id: string}} artifact @param {HTMLElement} message */
async function startDownload(artifact, message) {
  try {
    const { path } = await post('download', artifact)
    const link = h('a', { href: path, download: artifact.id })
    link.click()
    setText(message, 'The download begins.')
  } catch (error) {
    setText(message, error instanceof Error ? error.message : String(error))
  }
}

/** @param {Row} row */
function rowCard(row) {
  const pointers = row.pointers
  return [
    h(
      'article',
      { class: 'card', 'aria-label': `Row ${row.row_id}` },
      h('h4', {}, row.source, ' ', h('span', { class: 'note' }, row.column)),
      factList([
        ['Row', code(row.row_id)],
        [
          'Tenant',
          row.tenant_id === null
            ? h('span', { class: 'error' }, 'none can be found: such a row is never offloaded')
            : code(row.tenant_id),
        ],
        [
          'Where it is',
          [row.status.says, row.status.hint !== null && h('p', { class: 'note' }, row.status.hint)],
        ],
        ['In the table', row.stored_bytes === null ? 'null' : formatBytes(row.stored_bytes)],
        [
          'Pointers',
          pointers.length === 0
            ? 'none: the value is whole, in its row'
            : pointers.map(p => h('div', {}, code(p.name), ' → ', code(p.artifact_id))),
        ],
        [
          'Queue',
          row.job &&
            `queued ${formatTime(row.job.enqueued_at)}, ${formatCount(row.job.attempts)} attempts, due ${formatTime(row.job.available_at)}`,
        ],
        ['Last error', row.job?.last_error && h('span', { class: 'error' }, row.job.last_error)],
        [
          'Given up',
          row.dead_letter && [
            `${formatTime(row.dead_letter.failed_at)} after ${formatCount(row.dead_letter.attempts)} attempts: `,
            h('span', { class: 'error' }, row.dead_letter.last_error),
          ],
        ],
      ]),
      row.tenant_id !== null &&
        payloadViewer('value as the application wrote it', { source_id: row.source_id, row_id: row.row_id }),
    ),
    ...pointers.map(p =>
      p.artifact === null
        ? h(
            'p',
            { class: 'message message-bad' },
            code(p.name),
            ' points to ',
            code(p.artifact_id),
            ', which its tenant does not have: the row can not be hydrated.',
          )
        : artifactCard(p.artifact),
    ),
  ]
}

export function createLookup() {
  const source = h('select', { id: 'lookup-source', name: 'source_id', required: true })
  const rowId = h('input', {
    id: 'lookup-row',
    name: 'row_id',
    required: true,
    maxlength: '100',
    spellcheck: 'false',
    autocapitalize: 'none',
    autocomplete: 'off',
  })
  const artifactId = h('input', {
    id: 'lookup-artifact',
    name: 'id',
    required: true,
    maxlength: '36',
    spellcheck: 'false',
    autocapitalize: 'none',
    autocomplete: 'off',
  })
  const tenantId = h('input', {
    id: 'lookup-tenant',
    name: 'tenant_id',
    maxlength: '36',
    spellcheck: 'false',
    autocapitalize: 'none',
    autocomplete: 'off',
  })
  const result = h(
    'div',
    { class: 'result', 'aria-live': 'polite' },
    emptyState('Give the id of a row, or of an artifact, to see where its payloads are.'),
  )

  /** @param {() => Promise<import('./dom.js').Child[]>} find */
  const show = async find => {
    fill(result, h('p', { class: 'note' }, 'Looking…'))
    try {
      fill(result, ...(await find()))
    } catch (error) {
      fill(
        result,
        h('p', { class: 'message message-bad' }, error instanceof Error ? error.message : String(error)),
      )
    }
  }
  const showRow = () =>
    show(async () => rowCard((await get('row', { source_id: source.value, row_id: rowId.value.trim() })).row))
  const showArtifact = () =>
    show(async () => {
      const tenant = tenantId.value.trim()
      const query = { id: artifactId.value.trim(), ...(tenant !== '' && { tenant_id: tenant }) }
      return [artifactCard((await get('artifact', query)).artifact)]
    })

  /** @param {() => void} go @param {...HTMLElement} children */
  const form = (go, ...children) =>
    h(
      'form',
      {
        class: 'lookup-form',
        submit: (/** @type {Event} */ event) => {
          event.preventDefault()
          go()
        },
      },
      ...children,
      h('button', { class: 'button button-primary' }, 'Look up'),
    )
  /** @param {string} label @param {HTMLElement} input */
  const field = (label, input) => h('div', { class: 'field' }, h('label', { for: input.id }, label), input)

  openSection(
    'lookup',
    h(
      'div',
      { class: 'columns' },
      panel(
        'A row',
        { note: 'such as a message' },
        form(showRow, field('Table', source), field('Row id', rowId)),
      ),
      panel(
        'An artifact',
        {},
        form(showArtifact, field('Artifact id', artifactId), field('Tenant (optional, faster)', tenantId)),
      ),
    ),
    result,
  )

  const sourcesKnown = get('sources').then(({ sources }) => {
    fill(
      source,
      sources.map((/** @type {{id: number, source: string, column: string}} */ s) =>
        h('option', { value: s.id }, `${s.source} (${s.column})`),
      ),
    )
  })
  sourcesKnown.catch(() => fill(source, h('option', { value: '' }, 'not known')))

  return {
    /** @param {number} sourceId @param {string} row */
    lookUp: async (sourceId, row) => {
      await sourcesKnown.catch(() => undefined)
      source.value = String(sourceId)
      rowId.value = row
      byId('lookup').scrollIntoView()
      rowId.focus({ preventScroll: true })
      await showRow()
    },
  }
}
