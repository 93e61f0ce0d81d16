// An estimate for people and for scripts. What matters most comes first: whether it pays.
import { formatBytes, formatCount, renderTable } from '../cli/output.ts'
import { formatUsd } from '../reports/verdict.ts'
import { oursBytes } from './constants.ts'
import { type Estimate, paysOf } from './estimate.ts'
import type { Weight } from './weigh.ts'

export function renderEstimate(e: Estimate): string {
  const fatal = e.obstacles.filter(obstacle => obstacle.isFatal)
  const lines = [
    verdict(e),
    ...(fatal.length > 0
      ? [
          `attach would refuse it: ${fatal.length} ${fatal.length === 1 ? 'obstacle' : 'obstacles'}, see below`,
        ]
      : []),
  ]
  const { asAttached: weight } = e
  if (weight !== null && e.sample.rows > 0)
    lines.push('', ...figures(e, weight), '', ...billLines(e, weight), '', ...adviceLines(e, weight))
  lines.push('', ...sureness(e))
  for (const { found, hint, isFatal } of e.obstacles)
    lines.push(`${isFatal ? 'obstacle' : 'warning'}: ${found}${hint === null ? '' : `\n  hint: ${hint}`}`)
  if (fatal.length === 0 && weight !== null)
    lines.push(`nothing stands in the way of: lighter attach ${e.table} --column ${e.column}`)
  return lines.join('\n')
}

function verdict(e: Estimate): string {
  const name = `${e.table}.${e.column}`
  const { asAttached: weight, asAdvised: advised } = e
  if (weight === null) return `${name}: no estimate, since attach would refuse it as it is`
  if (e.sample.rows === 0) return `${name}: no estimate, since no row was found`
  if (weight.leaving.rows === 0)
    return `Offloading ${name} does not pay: nothing in the sample is heavy enough to leave.`
  const saved = weight.table.rewritten - weight.table.after - weight.ours
  const space = `the database gets about ${formatBytes(Math.abs(saved))} ${saved >= 0 ? 'smaller' : 'larger'} by it`
  const money = weight.bill.inline - weight.bill.offloaded
  const bill = `the bill ${money >= 0 ? 'saves' : 'costs'} about ${formatUsd(Math.abs(money))}${money >= 0 ? '' : ' more'} a month`
  if (e.pays) return `Offloading ${name} pays: ${space}; ${bill}.`
  const other = advised !== null && paysOf(advised) ? ' It does with the settings below.' : ''
  return `Offloading ${name} does not pay: ${space}; ${bill}.${other}`
}

function figures(e: Estimate, { table, ours, leaving, rows, backfill, tenants }: Weight): string[] {
  const about = (interval: number) => (interval === 0 ? '' : ` (± ${percent(interval)})`)
  return [
    `${formatCount(Math.round(leaving.rows))} of ${formatCount(Math.round(rows))} rows leave${about(e.sample.interval.rows)}: ${formatBytes(leaving.payloadBytes)} of text${about(e.sample.interval.payloadBytes)} in ${formatCount(Math.round(leaving.artifacts))} artifacts of ${formatCount(tenants.total)} tenants (${tenants.basis})`,
    renderTable(
      ['database', 'now', 'rewritten, all inline', 'all offloaded, rewritten'],
      [
        ['this table', formatBytes(table.now), formatBytes(table.rewritten), formatBytes(table.after)],
        [
          `pg-lighter (${formatBytes(oursBytes.fixed)} of it however little is stored)`,
          '',
          '',
          formatBytes(ours),
        ],
        ['both', formatBytes(table.now), formatBytes(table.rewritten), formatBytes(table.after + ours)],
      ],
    ),
    `The space comes back with a rewrite of the table, not before: lighter reclaim ${e.table}`,
    `The rows that are there make about ${formatCount(Math.round(backfill.puts))} PUTs (backfill, then flush), once: ${formatUsd((backfill.puts * e.prices.classAMillion) / 1e6)}`,
  ]
}

function billLines(e: Estimate, { bill, steady }: Weight): string[] {
  const rate =
    e.rate === null
      ? `A month, of the rows that are there. PUTs are not in it: no column tells how many rows come. Give --rows-per-second.`
      : `A month, at ${figure(e.rate.rowsPerSecond)} rows a second (${e.rate.basis}), kept for ${e.keptDays} days: ${formatCount(Math.round(bill.rows))} rows`
  const usd = formatUsd
  return [
    rate,
    renderTable(
      ['', 'this table', 'pg-lighter', 'bucket', 'PUTs', 'all'],
      [
        ['inline', usd(bill.inline), '', '', '', usd(bill.inline)],
        [
          'offloaded',
          usd(bill.parts.table),
          usd(bill.parts.ours),
          usd(bill.parts.bucket),
          usd(bill.parts.puts),
          usd(bill.offloaded),
        ],
      ],
    ),
    ...(steady === null
      ? []
      : [
          `${formatCount(Math.round(putsPerMonth(steady.putsPerSecond)))} PUTs a month, each with ${formatBytes(steady.packBytes)} of text on average`,
        ]),
    `Prices (${e.pricesFrom}): $${e.prices.databaseGbMonth} a GB of database, $${e.prices.bucketGbMonth} a GB of bucket, $${e.prices.classAMillion} a million PUTs. A byte of text takes ${e.storedShare.value.toFixed(2)} in the bucket (${e.storedShare.basis === 'measured' ? 'measured on a sample' : 'the measured default'}).`,
  ]
}

function adviceLines(e: Estimate, weight: Weight): string[] {
  const better = weight.bill.offloaded - (e.asAdvised?.bill.offloaded ?? weight.bill.offloaded)
  return [
    `Settings${better > 0.005 ? `, which save about ${formatUsd(better)} a month more` : ''}:`,
    renderTable(
      ['for attach', '', 'why'],
      e.advice.map(({ setting, value, isDefault, why }) => [
        setting,
        `${value}${isDefault ? ' (as it is)' : ''}`,
        why,
      ]),
    ),
  ]
}

function sureness({ sample, facts, caveats, asAttached }: Estimate): string[] {
  const pages = `${formatCount(sample.pages)} of ${formatCount(sample.ofPages)} pages`
  const opened = `${formatCount(sample.rows)} rows, ${formatCount(sample.opened)} values opened`
  const { interval } = sample
  return [
    sample.share >= 1
      ? `Sure: the whole table was read (${opened}).`
      : `Sample: ${pages} (${opened}). 95 % interval: ± ${percent(interval.rows)} of the rows, ± ${percent(interval.payloadBytes)} of their text, ± ${percent(interval.tableAfter)} of the table after.`,
    ...(asAttached === null || facts.partitions === 0 ? [] : [`${facts.partitions} partitions, together.`]),
    ...caveats,
  ]
}

const putsPerMonth = (perSecond: number) => perSecond * 30 * 86_400

const percent = (share: number) =>
  Number.isFinite(share) ? `${(share * 100).toFixed(share < 0.1 ? 1 : 0)} %` : 'any %'

const figure = (value: number) =>
  value >= 100 ? formatCount(Math.round(value)) : Number(value.toPrecision(3)).toString()

export function estimateJson(e: Estimate) {
  const weightJson = (weight: Weight | null) =>
    weight === null
      ? null
      : {
          rows: Math.round(weight.rows),
          leaving: {
            rows: Math.round(weight.leaving.rows),
            artifacts: Math.round(weight.leaving.artifacts),
            payload_bytes: Math.round(weight.leaving.payloadBytes),
            stored_bytes: Math.round(weight.leaving.storedBytes),
          },
          database: {
            table_bytes_now: weight.table.now,
            table_bytes_rewritten_inline: Math.round(weight.table.rewritten),
            table_bytes_after: Math.round(weight.table.after),
            our_bytes: Math.round(weight.ours),
          },
          tenants: { total: weight.tenants.total, basis: weight.tenants.basis },
          backfill: {
            puts: Math.round(weight.backfill.puts),
            bucket_bytes: Math.round(weight.backfill.bucketBytes),
          },
          puts_per_month:
            weight.steady === null ? null : Math.round(putsPerMonth(weight.steady.putsPerSecond)),
          pack_bytes: weight.steady === null ? null : Math.round(weight.steady.packBytes),
          waiting_rows: weight.steady === null ? null : Math.round(weight.steady.waitingRows),
          usd_per_month: {
            inline: weight.bill.inline,
            offloaded: weight.bill.offloaded,
            table: weight.bill.parts.table,
            ours: weight.bill.parts.ours,
            bucket: weight.bill.parts.bucket,
            puts: weight.bill.parts.puts,
            rows_kept: Math.round(weight.bill.rows),
          },
        }
  return {
    table: e.table,
    column: e.column,
    pays: e.pays,
    can_attach: !e.obstacles.some(obstacle => obstacle.isFatal),
    as_attached: weightJson(e.asAttached),
    as_advised: weightJson(e.asAdvised),
    advice: Object.fromEntries(
      e.advice.map(({ setting, value, isDefault, why }) => [setting, { value, is_default: isDefault, why }]),
    ),
    rows_per_second: e.rate?.rowsPerSecond ?? null,
    rows_per_second_basis: e.rate?.basis ?? null,
    kept_days: e.keptDays,
    prices: {
      database_gb_month: e.prices.databaseGbMonth,
      bucket_gb_month: e.prices.bucketGbMonth,
      class_a_million: e.prices.classAMillion,
      from: e.pricesFrom,
    },
    stored_share: e.storedShare,
    sample: {
      rows: e.sample.rows,
      pages: e.sample.pages,
      of_pages: e.sample.ofPages,
      share: e.sample.share,
      opened: e.sample.opened,
      outliers: e.sample.outliers,
      stopped_by: e.sample.stoppedBy,
      interval_95: {
        rows: finite(e.sample.interval.rows),
        payload_bytes: finite(e.sample.interval.payloadBytes),
        table_after: finite(e.sample.interval.tableAfter),
      },
    },
    caveats: e.caveats,
    obstacles: e.obstacles.filter(o => o.isFatal).map(({ found, hint }) => ({ found, hint })),
    warnings: e.obstacles.filter(o => !o.isFatal).map(({ found, hint }) => ({ found, hint })),
  }
}

const finite = (value: number) => (Number.isFinite(value) ? value : null)
