#!/usr/bin/env bash
# From a fresh clone to ten generated names: environment, install, training on the bundled names, samples.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
"$PYTHON" -c "import sys; sys.exit(sys.version_info < (3, 11))" || {
    echo "$PYTHON is not Python 3.11 or later; name another: PYTHON=python3.13 bash scripts/quickstart.sh" >&2
    exit 2
}
[ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
. .venv/bin/activate
echo "installing into .venv (PyTorch is large; this takes a minute or more) ..."
python -m pip install --quiet --disable-pip-version-check -e .
run=runs/quickstart/$(date +%Y%m%d-%H%M%S)
echo "training on the bundled names (about a minute) ..."
python -m mlp_lm fit --config configs/names.yaml --run_dir "$run"
echo "ten more names:"
python -m mlp_lm sample "$run/checkpoints/best.ckpt" --num 10
