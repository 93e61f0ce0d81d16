#!/usr/bin/env bash
# Runs the tests that were added since a commit against the product as it was at that commit, and counts how many fail.
# Usage: test/attacks/against.sh <commit> [test file ...]
set -euo pipefail
cd "$(git rev-parse --show-toplevel)"
commit=${1:?which commit?}
shift
work=$(mktemp -d)
trap 'git worktree remove --force "$work/tree"; rm -rf "$work"' EXIT
git worktree add --quiet --detach "$work/tree" "$commit"
ln -s "$PWD/node_modules" "$work/tree/node_modules"
# New files, and the fixtures that they use; tests that were there already stay as they were.
if [ $# -gt 0 ]; then added=("$@"); else
  mapfile -t added < <(git diff --name-only --diff-filter=A "$commit" -- 'test/faults/*.test.ts' 'test/attacks/*.test.ts')
fi
mkdir -p "$work/tree/test/attacks"
for path in test/support vitest.config.ts "${added[@]}"; do cp -r --remove-destination -T "$path" "$work/tree/$path"; done
cd "$work/tree"
# A test that waits for what never comes ends after half a minute, unless it says otherwise.
node_modules/.bin/vitest run --reporter=default --reporter=json --outputFile.json="$work/result.json" --testTimeout=30000 "${added[@]}" 2>&1 | tee "$work/log" | grep -E "✓|×|❯ test" || true
[ -s "$work/result.json" ] && node --eval 'process.exit(JSON.parse(require("fs").readFileSync(process.argv[1], "utf8")).testResults.length === 0 ? 1 : 0)' "$work/result.json" ||
  { tail -40 "$work/log"; echo "no test ran: see above" >&2; exit 1; }
node --eval '
  const { testResults } = JSON.parse(require("fs").readFileSync(process.argv[1], "utf8"))
  let failed = 0, passed = 0, skipped = 0
  for (const file of testResults) {
    const counts = { failed: 0, passed: 0, skipped: 0 }
    for (const test of file.assertionResults)
      counts[test.status === "passed" ? "passed" : test.status === "failed" ? "failed" : "skipped"]++
    if (file.assertionResults.length === 0 && file.status === "failed") counts.failed++
    console.log(file.name.replace(process.cwd() + "/", ""), JSON.stringify(counts))
    failed += counts.failed; passed += counts.passed; skipped += counts.skipped
  }
  console.log(`at ${process.argv[2]}: ${failed} of ${failed + passed} new tests fail, ${skipped} skipped`)
' "$work/result.json" "$commit"
