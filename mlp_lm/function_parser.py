"""Plain functions as commands: the signature and the docstring are the flags and the help."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from typing import Any, get_type_hints

import docstring_parser
from jsonargparse import ArgumentParser

from mlp_lm.parsing import OneLineErrors
from mlp_lm.settings import check, ranges


def call(function: Callable[..., None], command: str, args: list[str]) -> None:
    """Call `function` with what the command line gives; its signature and docstring are the flags and the help.

    Parameters without a default are positional; those that are positional-only are too, with a default they may be
    left out, and as a Sequence[str] be several. A bool that is False by default is a switch without a value; a
    Sequence[str] is a flag that may be repeated; other types with a default of False are flags whose value may be left
    out, which is True; the fields of a dataclass are flags of their own.
    """
    parameters = inspect.signature(function, eval_str=True).parameters
    groups: dict[str, Any] = {name: p.annotation for name, p in parameters.items() if is_dataclass(p.annotation)}
    positional = [name for name, p in parameters.items() if p.kind is p.POSITIONAL_ONLY]
    doc = docstring_parser.parse(inspect.getdoc(function) or "")
    text = "\n\n".join(filter(None, (doc.short_description, doc.long_description)))
    parser = OneLineErrors(prog=f"python -m mlp_lm {command}", description=text)
    for name in positional:  # a str, as a file may be called null
        default = parameters[name].default
        optional = {} if default is inspect.Parameter.empty else {"nargs": "?", "default": default}
        several = {"nargs": "+"} if parameters[name].annotation == Sequence[str] else optional
        parser.add_argument(name, type=str, help=_descriptions(doc)[name], **several)
    _add_arguments(parser, function, skip={*positional, *groups})
    for group in groups.values():
        _add_arguments(parser, group, skip={*positional})
    allowed = ranges(function)
    for group in groups.values():
        allowed |= ranges(group)
    parser.show_ranges(allowed)
    found = parser.parse_args(args).as_dict()
    check(found, allowed)
    given = [found[name] for name in positional]
    for name, group in groups.items():  # which may have a positional argument as a field
        found[name] = group(**{field: found.pop(field) for field in get_type_hints(group)})
    function(*given, **{name: value for name, value in found.items() if name not in positional})


def _add_arguments(
    parser: ArgumentParser, owner: Callable[..., Any], skip: set[str] | frozenset[str] = frozenset()
) -> None:
    """The parameters of a function, or the fields of a dataclass, as arguments of `parser`."""
    parameters = inspect.signature(owner, eval_str=True).parameters
    descriptions = _descriptions(docstring_parser.parse(inspect.getdoc(owner) or ""))
    switches = {n for n, p in parameters.items() if p.annotation is bool and p.default is False and n not in skip}
    with_or_without = {n for n, p in parameters.items() if p.default is False and n not in {*skip, *switches}}
    repeated = {n for n, p in parameters.items() if p.annotation == Sequence[str] and n not in skip}
    for name in sorted(switches):
        parser.add_argument(f"--{name}", action="store_true", help=descriptions[name])
    for name in sorted(repeated):
        parser.add_argument(f"--{name}", action="append", default=[], help=descriptions[name])
    for name in sorted(with_or_without):
        kind = parameters[name].annotation
        parser.add_argument(f"--{name}", nargs="?", const=True, default=False, type=kind, help=descriptions[name])
    add = parser.add_class_arguments if isinstance(owner, type) else parser.add_function_arguments
    add(owner, as_positional=True, skip={*skip, *switches, *with_or_without, *repeated})


def _descriptions(doc: docstring_parser.Docstring) -> dict[str, str]:
    return {parameter.arg_name: parameter.description or "" for parameter in doc.params}
