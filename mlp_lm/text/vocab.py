"""The vocabulary: tokens and their ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mlp_lm.errors import DataError
from mlp_lm.terminal import display_name, format_unknown

BOUNDARY = 0  # id of the boundary: pads the context at the start of an item and ends it
UNKNOWN = "<unk>"  # the token for words outside a vocabulary


class Vocab:
    """The V tokens of a language model; a token's id is its index in `tokens`, and `ids` maps tokens to ids.

    Id 0 is the boundary. Its string is `""`, which no text can contain, so a literal dot in the data
    stays a token of its own although the boundary is shown as `.`.
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        """`tokens`: all V strings, distinct, the boundary `""` first."""
        if not tokens or tokens[BOUNDARY] != "" or len(set(tokens)) != len(tokens):
            raise ValueError("a vocabulary starts with the boundary '' and repeats no token")
        self.tokens = list(tokens)
        self.ids = {token: i for i, token in enumerate(self.tokens)}

    @classmethod
    def build(cls, tokens: Iterable[str]) -> Vocab:
        """Build the vocabulary of the distinct `tokens`, sorted, so that their order of appearance does not matter."""
        return cls(["", *sorted(set(tokens))])

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, token: str) -> bool:
        return token != "" and token in self.ids

    def encode(self, tokens: Iterable[str]) -> list[int]:
        """Return the ids of `tokens`; unknown ones get the id of `<unk>`.

        Raises DataError that names the unknown ones and lists the alphabet if the vocabulary has no `<unk>`.
        """
        tokens = list(tokens)
        if UNKNOWN not in self.ids and (unknown := self.unknown(tokens)):
            raise DataError(f"{format_unknown(unknown)}; the model knows {self.describe()}")
        return [self.ids.get(token, self.ids.get(UNKNOWN, BOUNDARY)) for token in tokens]

    def unknown(self, tokens: Iterable[str]) -> list[str]:
        """Return the distinct `tokens` that are not in the vocabulary, in order of appearance."""
        return [token for token in dict.fromkeys(tokens) if token not in self]

    def decode(self, ids: Iterable[int]) -> list[str]:
        """Return the strings of `ids`; the boundary's is empty."""
        return [self.tokens[i] for i in ids]

    def show(self, token_id: int) -> str:
        """Return a visible name for one token; see `display_name`."""
        return display_name(self.tokens[token_id])

    def describe(self) -> str:
        """List all tokens but the boundary on one line, cut after a hundred."""
        shown = " ".join(self.show(i) for i in range(1, min(len(self), 101)))
        return shown if len(self) <= 101 else f"{shown} … ({len(self) - 1:,} tokens)"

    def windows(self, tokens: Iterable[str], context_size: int) -> list[tuple[list[int], int]]:
        """Return the windows of one item: (T context ids, target id) for each token and the boundary that ends it."""
        context, rows = [BOUNDARY] * context_size, []
        for target in [*self.encode(tokens), BOUNDARY]:
            rows.append((context, target))
            context = [*context[1:], target]
        return rows
