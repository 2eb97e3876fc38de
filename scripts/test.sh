#!/usr/bin/env bash
# Everything that must hold before a change lands: ruff, mypy --strict and all tests, in .venv.
#   bash scripts/test.sh            all tests
#   bash scripts/test.sh -m "not slow"   the fast ones; further arguments go to pytest
# The test of the exported page in a browser is skipped without Chromium, on Debian: apt-get install chromium
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
[ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
. .venv/bin/activate
echo "installing into .venv ..."
python -m pip install --quiet --disable-pip-version-check -e ".[test]"
ruff format --check .
ruff check .
mypy
if [ $# -eq 0 ]; then set -- -m ""; fi
pytest --numprocesses 2 --dist worksteal "$@"
