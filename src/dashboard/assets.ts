// What the pages load: read once, served from a list, so that no path leads anywhere else.
import { hash } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import type { FastifyInstance } from 'fastify'

const types: Record<string, string> = {
  js: 'text/javascript; charset=utf-8',
  css: 'text/css; charset=utf-8',
  svg: 'image/svg+xml',
}

const own = (name: string) => new URL(`./page/${name}`, import.meta.url)

/** Served as /dashboard/assets/<name>. */
const files: Record<string, URL> = {
  ...Object.fromEntries(
    [
      'icon.svg',
      'style.css',
      'theme.js',
      'app.js',
      'charts.js',
      'dom.js',
      'failures.js',
      'feed.js',
      'format.js',
      'json-text.js',
      'lookup.js',
      'overview.js',
      'queue.js',
      'request.js',
      'storage.js',
      'sweeps.js',
      'table.js',
    ].map(name => [name, own(name)]),
  ),
  'uplot.js': new URL('./uPlot.esm.js', import.meta.resolve('uplot')),
  'uplot.css': new URL('./uPlot.min.css', import.meta.resolve('uplot')),
}

/** They are the same for everybody: no session is needed, and the login page looks like the rest. */
export async function assetRoutes(app: FastifyInstance): Promise<void> {
  for (const [name, url] of Object.entries(files)) {
    const body = await readFile(fileURLToPath(url))
    const etag = `"${hash('sha256', body, 'base64url')}"`
    const type = types[name.split('.').at(-1) ?? ''] ?? 'application/octet-stream'
    app.get(
      `/dashboard/assets/${name}`,
      { config: { open: true }, schema: { hide: true } },
      (request, reply) => {
        // Asked for again each time: after an upgrade old scripts must not meet new answers.
        reply.header('cache-control', 'no-cache').header('etag', etag).type(type)
        if (request.headers['if-none-match'] === etag) return reply.code(304).send()
        return reply.send(body)
      },
    )
  }
}
