#!/usr/bin/env bash
# Everything that is checked, here as in CI: set-up, format, lint, types, import rules, generated docs, tests.
set -euo pipefail
cd "$(dirname "$0")/.."

"${PYTHON:-python3}" tools/setup.py --extra dev
bin=.venv/bin
typed=(src tests tools)
[ -d bench ] && typed+=(bench)

step() {
    printf '\n== %s\n' "$1"
    shift
    "$@"
}
step "format" "$bin/ruff" format --check .
step "lint" "$bin/ruff" check .
step "types" "$bin/mypy" "${typed[@]}"
step "import rules" "$bin/lint-imports"
step "generated docs" "$bin/python" tools/cli_docs.py --check
step "generated settings" "$bin/python" tools/settings_docs.py --check
# A worker for each core, a file at a time: most tests wait for processes and clocks, and use a core by halves.
step "tests" "$bin/python" -m pytest --ignore=tests/soak -n logical --maxprocesses 4 --dist loadfile "$@"
