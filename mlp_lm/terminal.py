"""How text, tokens and counts look in messages and tables."""

from __future__ import annotations

from collections.abc import Sequence


def escape(text: str) -> str:
    """Escape the characters of `text` that a terminal would not show, or would obey."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def escape_lines(text: str) -> str:
    """Escape each line of `text`; its line ends stay."""
    return "\n".join(map(escape, text.split("\n")))


def display_name(token: str) -> str:
    """Return a visible name for a token: `.` for the boundary, `↵` for the end of a line.

    A literal dot and other invisible tokens are quoted: `'.'`, `' '`, `'\\t'`.
    """
    if token in ("", "\n"):
        return "." if token == "" else "↵"
    return token if token.isprintable() and token.strip() and token != "." else repr(token)


def pluralize(number: int, noun: str) -> str:
    """Format a count: `1 item`, `2,000 items`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def format_unknown(characters: Sequence[str]) -> str:
    """Format a list of unknown characters: `unknown characters 'Z', 'ë'`."""
    return f"unknown character{'' if len(characters) == 1 else 's'} {', '.join(map(repr, characters))}"
