#!/usr/bin/env bash
# The fast tests with the lowest allowed version of each dependency, on the oldest Python that is installed, and with the
# highest on every Python of pyproject.toml's classifiers that is installed; each in an environment of its own, which is
# thrown away.
#   bash scripts/test_versions.sh
#   TORCH=2.13.0 bash scripts/test_versions.sh    another lowest torch: PyPI's 2.10 brings gigabytes of CUDA
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

versions=$(sed -n 's/^ *"Programming Language :: Python :: \(3\.[0-9]*\)",$/\1/p' pyproject.toml)
pythons=()
for version in $versions; do
    for python in "$(command -v "python$version" || true)" "$HOME"/.pyenv/versions/"$version".*/bin/python; do
        if [ -x "$python" ] && "$python" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$version')" 2>/dev/null; then
            pythons+=("$python")
            break
        fi
    done
done
[ ${#pythons[@]} -gt 0 ] || { echo "none of the Pythons that pyproject.toml names is installed" >&2; exit 2; }

# Each requirement's lower bound, as a constraint: torch>=2.10,<2.14 becomes torch==2.10.
sed -n '/^dependencies = \[/,/^\]/s/^ *"\([a-z]*\)[^">]*>=\([0-9.]*\).*/\1==\2/p' pyproject.toml >"$work/lowest.txt"
[ -z "${TORCH:-}" ] || sed -i "s/^torch==.*/torch==$TORCH/" "$work/lowest.txt"
touch "$work/highest.txt"

results=()
try() { # Python, lowest or highest
    local name
    name="$("$1" --version), $2 versions"
    echo "== $name"
    "$1" -m venv --clear "$work/venv"
    if "$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check -e ".[test]" -c "$work/$2.txt" &&
        "$work/venv/bin/python" -m pytest; then
        results+=("passed  $name")
    else
        results+=("FAILED  $name")
    fi
}

try "${pythons[0]}" lowest
for python in "${pythons[@]}"; do try "$python" highest; done
printf '%s\n' "${results[@]}"
case "${results[*]}" in *FAILED*) exit 1 ;; esac
