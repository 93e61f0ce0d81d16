// docs/metrics.md, the alerts and the dashboard against the metrics that there are.
import { spawnSync } from 'node:child_process'
import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterAll, describe, expect, test } from 'vitest'
import { parse, stringify } from 'yaml'
import { boundedLabels } from '../../src/telemetry/bounded-labels.ts'
import { createMetrics } from '../../src/telemetry/metrics.ts'
import { readDoc } from '../support/doc-blocks.ts'

const root = path.join(import.meta.dirname, '..', '..')
const monitoring = path.join(root, 'monitoring')
const read = (name: string) => readFileSync(path.join(monitoring, name), 'utf8')

interface Metric {
  name: string
  type: string
  labels: string[]
  help: string
}

const created = createMetrics(1)
created.stop()
const types = new Map((await created.registry.getMetricsAsJSON()).map(each => [each.name, String(each.type)]))
const metrics: Metric[] = created.registry.getMetricsAsArray().map(metric => ({
  name: metric.name,
  type: types.get(metric.name) ?? '',
  labels: 'labelNames' in metric && Array.isArray(metric.labelNames) ? metric.labelNames.map(String) : [],
  help: metric.help,
}))

interface Rules {
  groups: {
    rules: {
      alert: string
      expr: string
      for?: string
      labels: Record<string, string>
      annotations: Record<string, string>
    }[]
  }[]
}
const rules = (parse(read('alerts.yaml')) as Rules).groups.flatMap(group => group.rules)

interface Panel {
  title: string
  type: string
  targets?: { expr: string }[]
}
const dashboard = JSON.parse(read('grafana/dashboards/pg-lighter.json')) as { panels: Panel[] }
const panels = dashboard.panels.filter(panel => panel.type !== 'row')
const panelExpressions = panels.flatMap(({ title, targets = [] }) =>
  targets.map(({ expr }) => ({ title, expr })),
)

/** Which metrics an expression reads, each with the labels that it is asked by. */
function metricsOf(expr: string): { name: string; labels: string[] }[] {
  return [...expr.matchAll(/\b(lighter_[a-z_]+|up)\b(?:\{([^}]*)\})?/g)].map(
    ([, name = '', matchers = '']) => ({
      name,
      labels: [...matchers.matchAll(/([a-z_]+)\s*[=!]~?/g)].map(([, label = '']) => label),
    }),
  )
}

/** A histogram is three series. */
const metricOf = (series: string) =>
  metrics.find(
    ({ name, type }) =>
      name === series || (type === 'histogram' && /^(.*)_(bucket|sum|count)$/.exec(series)?.[1] === name),
  )

describe('names', () => {
  test('are those of Prometheus: a prefix, base units, _total for counters', () => {
    expect(metrics.length).toBeGreaterThan(50)
    for (const { name, type } of metrics) {
      expect(name).toMatch(/^lighter_[a-z]+(_[a-z]+)*$/)
      expect([name, name.endsWith('_total')]).toEqual([name, type === 'counter'])
      expect(name).not.toMatch(/_(ms|milliseconds|kb|mb|percent)(_|$)/)
      if (type === 'histogram') expect(name).toMatch(/_seconds$/)
    }
  })

  test('no metric has a label per tenant unless it was asked for', () => {
    const plain = createMetrics()
    plain.stop()
    expect(plain.registry.getMetricsAsArray().filter(metric => /tenant/.test(metric.name))).toEqual([])
    expect(metrics.filter(metric => metric.labels.includes('tenant')).map(metric => metric.name)).toEqual([
      'lighter_tenant_artifacts_total',
      'lighter_tenant_payload_bytes_total',
    ])
  })

  test('a label of which there may be any number is bounded', async () => {
    const bounded = boundedLabels(2)
    expect(['a', 'b', 'c', 'a', 'd', 'b'].map(bounded)).toEqual(['a', 'b', 'other', 'a', 'other', 'b'])
    const many = createMetrics()
    many.stop()
    many.offload.committed({
      offloaded: 0,
      nothing: 0,
      gone: 0,
      changed: 0,
      artifacts: Array.from({ length: 200 }, (_, i) => ({ kind: `k${i}`, tenantId: null, payloadBytes: 1 })),
      objects: [],
      latencies: [],
    })
    const found = await many.registry.getSingleMetric('lighter_artifacts_total')?.get()
    const values = found?.values ?? []
    expect(values.length).toBe(51)
    expect(values.find(({ labels }) => labels.kind === 'other')?.value).toBe(150)
  })
})

test('docs/metrics.md lists every metric as it is, and no other', () => {
  const listed = (readDoc('metrics.md').match(/^\| `lighter_.*\|$/gm) ?? []).map(line => {
    const [name = '', type = '', labels = '', help = ''] = line
      .slice(1, -1)
      .split('|')
      .map(cell => cell.trim())
    return {
      name: name.replaceAll('`', ''),
      type,
      labels: labels === '' ? [] : labels.split(', '),
      help,
    }
  })
  const byName = (a: Metric, b: Metric) => a.name.localeCompare(b.name)
  expect(listed.sort(byName)).toEqual([...metrics].sort(byName))
})

describe('alerts', () => {
  test('are all in docs/metrics.md, with their severity', () => {
    const listed = (readDoc('metrics.md').match(/^\| `Lighter.*\|$/gm) ?? []).map(line => {
      const cells = line.split('|').map(cell => cell.trim().replaceAll('`', ''))
      return `${cells[1]} ${cells[3]}`
    })
    expect(listed).toEqual(rules.map(rule => `${rule.alert} ${rule.labels.severity}`))
  })

  test('each says what is wrong, and its runbook exists', () => {
    const runbooks = readDoc('operations.md').split(/^## Runbooks$/m)[1] ?? ''
    const anchors = [...runbooks.matchAll(/^### (.*)$/gm)].map(([, title = '']) =>
      title
        .toLowerCase()
        .replace(/[^\p{L}\p{N} _-]/gu, '')
        .replaceAll(' ', '-'),
    )
    for (const { alert, annotations, labels } of rules) {
      expect(Object.keys(annotations), alert).toEqual(['summary', 'description', 'runbook'])
      expect(['warning', 'critical'], alert).toContain(labels.severity)
      const [file, anchor] = (annotations.runbook ?? '').split('#')
      expect([alert, file]).toEqual([alert, 'docs/operations.md'])
      expect(anchors, alert).toContain(anchor)
    }
  })

  test('each is shown where it fires, and where it does not', () => {
    const { tests } = parse(read('alerts.test.yaml')) as {
      tests: { alert_rule_test: { alertname: string; exp_alerts: unknown[] }[] }[]
    }
    const cases = tests.flatMap(each => each.alert_rule_test)
    for (const { alert } of rules) {
      const of = cases.filter(({ alertname }) => alertname === alert)
      expect(
        of.some(({ exp_alerts }) => exp_alerts.length > 0),
        `${alert} fires`,
      ).toBe(true)
      expect(
        of.some(({ exp_alerts }) => exp_alerts.length === 0),
        `${alert} does not`,
      ).toBe(true)
    }
  })
})

test.each([...rules.map(({ alert, expr }) => ({ title: alert, expr })), ...panelExpressions])(
  '$title: the metrics of $expr exist, with those labels',
  ({ expr }) => {
    const named = metricsOf(expr)
    expect(named.length).toBeGreaterThan(0)
    for (const { name, labels } of named) {
      if (name === 'up') continue
      const metric = metricOf(name)
      expect(metric, name).toBeDefined()
      for (const label of labels)
        expect([...(metric?.labels ?? []), 'instance', 'job', 'le']).toContain(label)
    }
  },
)

test('the dashboard shows what the alerts are about', () => {
  const shown = new Set(panelExpressions.flatMap(({ expr }) => metricsOf(expr).map(({ name }) => name)))
  for (const { alert, expr } of rules) {
    expect(
      metricsOf(expr).some(({ name }) => shown.has(name)),
      alert,
    ).toBe(true)
  }
})

const hasPromtool = spawnSync('promtool', ['--version']).error === undefined
if (!hasPromtool) {
  console.warn('promtool is not installed: the alerts are not tried (Debian: apt-get install prometheus)')
}

describe.skipIf(!hasPromtool)('promtool (skipped where it is not installed)', () => {
  const dir = mkdtempSync(path.join(tmpdir(), 'pg-lighter-monitoring-'))
  afterAll(() => rmSync(dir, { recursive: true }))
  const promtool = (...args: string[]) => {
    const { status, stdout, stderr } = spawnSync('promtool', args, { encoding: 'utf8', cwd: dir })
    expect(status, `${stdout}${stderr}`).toBe(0)
  }

  test('takes the configuration and its rules', () => {
    copyFileSync(path.join(monitoring, 'alerts.yaml'), path.join(dir, 'alerts.yaml'))
    // Where the container has them.
    const config = read('prometheus.yml')
      .replace('/etc/prometheus/alerts.yaml', 'alerts.yaml')
      .replace('/run/secrets/service_api_key', 'service-key')
    writeFileSync(path.join(dir, 'prometheus.yml'), config)
    writeFileSync(path.join(dir, 'service-key'), 'k'.repeat(32))
    promtool('check', 'config', 'prometheus.yml')
    promtool('check', 'rules', 'alerts.yaml')
  })

  test('finds that the alerts fire when they should', () => {
    promtool('test', 'rules', path.join(monitoring, 'alerts.test.yaml'))
  })

  test('understands every expression of the dashboard', () => {
    const recorded = panelExpressions.map(({ expr }, i) => ({
      record: `panel:${i}`,
      expr: expr.replaceAll('$__rate_interval', '1m').replaceAll('$instance', '.*'),
    }))
    expect(recorded.length).toBeGreaterThan(40)
    expect(recorded.filter(({ expr }) => expr.includes('$'))).toEqual([])
    const file = path.join(dir, 'panels.yaml')
    writeFileSync(file, stringify({ groups: [{ name: 'panels', rules: recorded }] }))
    promtool('check', 'rules', file)
  })
})
