// The two pages. What is in them is filled in by the scripts; without scripts there is the login and a sentence.
import { type Html, html } from './html.ts'
import type { Session } from './session.ts'

/** Links are relative, so that a proxy may put the whole under a path of its own. Pages are at …/dashboard. */
function page(title: string, head: Html, body: Html): string {
  return html`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>${title}</title>
<link rel="icon" href="dashboard/assets/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="dashboard/assets/style.css">
<script src="dashboard/assets/theme.js"></script>
${head}
</head>
<body>
${body}
</body>
</html>
`.markup
}

export function loginPage(problem: string | null, retryWith: 'form' | 'nothing' = 'form'): string {
  const message =
    problem === null ? html`` : html`<p class="message message-bad" role="alert" id="problem">${problem}</p>`
  const form = html`<form method="post" action="dashboard/login" class="login-form">
<label for="key">Service key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus
  spellcheck="false" autocapitalize="none" aria-describedby="${problem === null ? 'hint' : 'problem hint'}">
<button type="submit" class="button button-primary">Sign in</button>
<p id="hint" class="hint">One of the keys in <code>SERVICE_API_KEY</code>. It is sent once; the session ends after four hours.</p>
</form>`
  return page(
    'Sign in · pg-lighter',
    html``,
    html`<main class="login">
<h1 class="wordmark"><img src="dashboard/assets/icon.svg" alt="" width="28" height="28">pg-lighter</h1>
${message}
${retryWith === 'form' ? form : html``}
</main>`,
  )
}

export function appPage(
  session: Session,
  facts: { payloads: boolean; version: string; open: boolean },
): string {
  return page(
    'Dashboard · pg-lighter',
    html`<meta name="csrf-token" content="${session.csrfToken}">
<meta name="payloads" content="${facts.payloads ? 'on' : 'off'}">
<link rel="stylesheet" href="dashboard/assets/uplot.css">
<script type="module" src="dashboard/assets/app.js"></script>`,
    html`<a class="skip" href="#content">Skip to the figures</a>
<header class="top">
<div class="top-in">
<p class="wordmark"><img src="dashboard/assets/icon.svg" alt="" width="24" height="24">pg-lighter <span class="version">${facts.version}</span></p>
<nav aria-label="Sections">
<a href="#activity">Activity</a><a href="#queue">Queue</a><a href="#failures">Failures</a><a href="#storage">Storage</a><a href="#sweeps">Sweeps</a><a href="#lookup">Look up</a>
</nav>
<div class="top-tools">
<p class="pulse" id="pulse" data-state="waiting"><span class="dot" aria-hidden="true"></span><span id="pulse-text">Connecting</span></p>
<button type="button" class="button button-quiet" id="theme" aria-pressed="false">Dark</button>
${facts.open ? html`` : html`<button type="button" class="button button-quiet" id="sign-out">Sign out</button>`}
</div>
</div>
</header>
<p class="visually-hidden" role="status" id="announcer"></p>
<main id="content" tabindex="-1">
<h1 class="visually-hidden">Dashboard</h1>
<noscript><p class="message">The figures need JavaScript. Without it there is <code>lighter stats</code>.</p></noscript>
<p class="message message-bad" role="alert" id="trouble" hidden></p>
<section id="overview" aria-label="At a glance" aria-busy="true"></section>
<section id="activity" aria-labelledby="activity-title" aria-busy="true"><h2 id="activity-title">Activity</h2></section>
<section id="queue" aria-labelledby="queue-title" aria-busy="true"><h2 id="queue-title">Queue and daemons</h2></section>
<section id="failures" aria-labelledby="failures-title" aria-busy="true"><h2 id="failures-title">Failures</h2></section>
<section id="storage" aria-labelledby="storage-title" aria-busy="true"><h2 id="storage-title">Storage</h2></section>
<section id="sweeps" aria-labelledby="sweeps-title" aria-busy="true"><h2 id="sweeps-title">Sweeps</h2></section>
<section id="lookup" aria-labelledby="lookup-title" aria-busy="true"><h2 id="lookup-title">Look up</h2></section>
</main>`,
  )
}
