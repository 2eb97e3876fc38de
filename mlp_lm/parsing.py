"""Command-line parsers of all commands: a user's mistake is one SettingsError line, with a suggestion."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable
from typing import Any, NoReturn

import docstring_parser
from jsonargparse import ArgumentParser

from mlp_lm.errors import SettingsError


class OneLineErrors(ArgumentParser):
    """An ArgumentParser that raises SettingsError with one line instead of printing its usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise SettingsError with jsonargparse's `message`, shortened, and the known name nearest to a wrong one."""
        raise SettingsError(_one_line(message) + self._suggestion(message)) from ex

    def _suggestion(self, message: str) -> str:
        wrong = re.search(r"unrecognized arguments: -*([\w.-]+)|[Kk]ey ['\"]([\w.-]+)['\"] is not|key '([\w.-]+)'", message)
        if not wrong:
            return ""
        name = next(filter(None, wrong.groups())).replace("-", "_")
        known = [option.removeprefix("--") for action in self._actions for option in action.option_strings]
        # A key may be reported without its section: compare it with the last parts too.
        close = difflib.get_close_matches(name, known, n=1) or [
            option for end in difflib.get_close_matches(name.split(".")[-1], [k.split(".")[-1] for k in known], n=1)
            for option in known if option.split(".")[-1] == end
        ][:1]
        return f"; did you mean {close[0]}?" if close else ""


def _one_line(message: str) -> str:
    """jsonargparse's message on a line: where, what was found, what was expected."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    text = " ".join(lines)
    key = re.search(r"Parser key \"([^\"]+)\"", text)
    value = re.search(r"(?:Got|Given) value: (.*)$", text)
    subtypes = re.search(r"Subtypes: [\[(](.*?)[\])] ", text) or re.search(r"Expected an? (.*?)\. Got value", text)
    if key and value and subtypes:
        expected = re.sub(r"<class '(?:NoneType)'>", "null", subtypes[1])
        expected = re.sub(r"<class '(\w+)'>", r"\1", expected).replace("typing.", "").replace(", ", " or ")
        return f"{key[1]}: found {value[1]!r}, expected {expected}"
    return text


def parse_call(function: Callable[..., None], command: str, args: list[str]) -> dict[str, Any]:
    """The arguments of `function` as given on the command line.

    Its signature and docstring are the flags and the help: parameters without a default are positional, a bool
    is a switch that takes no value, a hyphen in a flag is as good as an underscore.
    """
    doc = docstring_parser.parse(inspect.getdoc(function) or "")
    described = {parameter.arg_name: parameter.description for parameter in doc.params}
    parameters = inspect.signature(function, eval_str=True).parameters
    switches = {name for name, parameter in parameters.items() if parameter.annotation is bool}
    text = "\n\n".join(filter(None, (doc.short_description, doc.long_description)))
    parser = OneLineErrors(prog=f"python -m mlp_lm {command}", description=text)
    for name in sorted(switches):
        parser.add_argument(f"--{name}", action="store_true", help=described.get(name))
    parser.add_function_arguments(function, as_positional=True, skip=switches)
    return parser.parse_args([_with_underscores(arg) for arg in args]).as_dict()


def _with_underscores(arg: str) -> str:
    flag, equals, value = arg.partition("=")
    return flag[:2] + flag[2:].replace("-", "_") + equals + value if re.match(r"--[a-z]", flag) else arg
