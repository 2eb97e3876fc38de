"""Build mlp_lm/text/names.txt from the first-name tables of Faker (all locales).

    pip install faker
    python scripts/benchmarks/build_names.py

Only this script needs Faker; the list it writes is committed. The names are decomposed (NFKD), stripped of
combining marks, lower-cased and kept where nothing but a-z remains; the list is sorted and has no repeats.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

TARGET = Path(__file__).resolve().parents[2] / "mlp_lm" / "text" / "names.txt"


def first_names() -> Iterator[str]:
    """Every entry of every table of first names in Faker's person providers, as Faker writes it."""
    providers = importlib.import_module("faker.providers.person")
    for module in pkgutil.iter_modules(providers.__path__, providers.__name__ + "."):
        provider = importlib.import_module(module.name).Provider
        for name, table in vars(provider).items():
            if re.match("first_(romanized_)?names", name) and isinstance(table, (tuple, list, dict)):
                yield from table


def plain(name: str) -> str:
    """`name` without accents, in lower case; empty where a character outside a-z is left."""
    letters = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c)).lower()
    return letters if re.fullmatch("[a-z]+", letters) else ""


def main() -> None:
    names = sorted({plain(name) for name in first_names()} - {""})
    TARGET.write_text("\n".join(names) + "\n", encoding="ascii", newline="\n")
    print(f"{len(names):,} names written to {TARGET}")


if __name__ == "__main__":
    main()
