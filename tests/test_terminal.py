"""How text, tokens and counts look in messages."""

from __future__ import annotations

import pytest

from mlp_lm.terminal import display_name, escape, escape_lines, format_unknown, pluralize


def test_what_a_terminal_would_obey_is_escaped() -> None:
    text = "zo\u00eb \x1b[31m\x00\n\u200b"
    assert escape(text) == "zoë \\x1b[31m\\x00\\n\\u200b"
    assert escape_lines(text) == "zoë \\x1b[31m\\x00\n\\u200b"


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("", "."),
        ("\n", "↵"),
        ("é", "é"),
        ("'", "'"),
        (".", "'.'"),
        (" ", "' '"),
        ("\t", r"'\t'"),
        ("\u200b", r"'\u200b'"),
        ("well-known", "well-known"),
    ],
)
def test_invisible_tokens_and_a_literal_dot_have_visible_names(token: str, expected: str) -> None:
    assert display_name(token) == expected


def test_counts_and_lists_have_a_plural() -> None:
    assert [pluralize(n, "item") for n in (0, 1, 2000)] == ["0 items", "1 item", "2,000 items"]
    assert format_unknown("Z") == "unknown character 'Z'"
    assert format_unknown(["Z", "ë"]) == "unknown characters 'Z', 'ë'"
