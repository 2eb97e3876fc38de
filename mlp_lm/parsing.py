"""Command-line parsers of all commands: a user's mistake is one SettingsError line, with a suggestion."""

from __future__ import annotations

import argparse
import difflib
import inspect
import re
from collections.abc import Callable, Collection, Sequence
from itertools import islice, pairwise
from typing import Any, NoReturn

import docstring_parser
import yaml
from jsonargparse import ArgumentParser

from mlp_lm.errors import SettingsError
from mlp_lm.settings import shown

MAX_CONFIG_BYTES = 100_000  # ours have 700; YAML is read at some 100 KB a second
MAX_DEPTH = 20
OPENS = (
    yaml.BlockMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.FlowSequenceStartToken,
)
CLOSES = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)
LINKED = ("vocab_size", "context_size")  # settings of the model that follow from the data


class OneLineErrors(ArgumentParser):
    """An ArgumentParser that raises SettingsError with one line instead of printing its usage."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)  # an abbreviation may mean another flag tomorrow

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse; numbers that no float can hold, and brackets in brackets, end as SettingsError, too."""
        try:
            return super().parse_args(*args, **kwargs)
        except (OverflowError, RecursionError) as error:
            self.error(f"a value that no setting can have ({error})", error)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise SettingsError with jsonargparse's `message`, shortened, and the known name nearest to a wrong one."""
        message = message.replace("Unrecognized arguments", "unrecognized arguments")  # the case depends on its version
        raise SettingsError(_one_line(message) + self._suggestion(message)) from ex

    def _suggestion(self, message: str) -> str:
        if text := re.search(r"unrecognized arguments: ([^-]\S*)", message):  # `fit mine.txt`
            return f"; did you mean --data.path {text[1]}?" if "data.path" in _options(self) else ""
        wrong = re.search(r"unrecognized arguments: -*([\w.-]+)|(?:option|key) ['\"]([\w.-]+)['\"]", message)
        if not wrong:
            return ""
        name = next(filter(None, wrong.groups())).replace("-", "_")
        return did_you_mean(name, _options(self), "--" if "unrecognized" in message else "")


def did_you_mean(name: str, names: Collection[str], dashes: str = "") -> str:
    """`; did you mean …?` with the one of `names`, dotted ones too, that is most like `name`; nothing where none is."""
    by_last_part = {known.split(".")[-1]: known for known in names}  # a section may be wrong, too
    near = difflib.get_close_matches(name, names, n=1) or [
        by_last_part[part] for part in difflib.get_close_matches(name.split(".")[-1], by_last_part, n=1)
    ]
    return f"; did you mean {dashes}{near[0]}?" if near and near[0] != name else ""


def _options(parser: argparse.ArgumentParser) -> list[str]:
    """The names of all options of a parser and of its subcommands."""
    options = []
    for action in parser._actions:  # argparse offers no public way to them
        options += [option.removeprefix("--") for option in action.option_strings]
        if isinstance(action.choices, dict):
            options += [option for subparser in action.choices.values() for option in _options(subparser)]
    return options


def _one_line(message: str) -> str:
    """jsonargparse's message on a line: where, what was found, what was expected."""
    text = " ".join(message.split())
    key = re.search(r"Parser key \"([^\"]+)\": *", text)
    value = re.search(r"(?:Got|Given) value: (.*)$", text)
    expected = re.search(r"Subtypes: [\[(](.*?)[\])] ", text) or re.search(r"Expected an? (.*?)\. Got value", text)
    if key and value and expected:
        choices = re.search(r"Literal\[(.*)\]", expected[1])
        types = choices[1].replace("'", "") if choices else re.sub(r"<class '(\w+)'>", r"\1", expected[1])
        types = types.replace("typing.", "").replace("NoneType", "null").replace(", ", " or ")
        return f"{key[1]}: found {value[1]!r}, expected {types}"
    return text.replace(key[0], f"{key[1]}: ") if key else text


def parse_call(function: Callable[..., None], command: str, args: list[str]) -> tuple[list[Any], dict[str, Any]]:
    """The positional-only and the other arguments of `function` as given on the command line.

    Its signature and docstring are the flags and the help: parameters without a default are positional, one that is
    positional-only and has a default may be left out, a bool that is False by default is a switch without a value, and
    a Sequence[str] is a flag that may be repeated.
    """
    doc = docstring_parser.parse(inspect.getdoc(function) or "")
    described = {parameter.arg_name: parameter.description for parameter in doc.params}
    parameters = inspect.signature(function, eval_str=True).parameters
    switches = {name for name, p in parameters.items() if p.annotation is bool and p.default is False}
    optional = [name for name, p in parameters.items() if p.kind is p.POSITIONAL_ONLY and p.default is not p.empty]
    repeated = [name for name, p in parameters.items() if p.annotation == Sequence[str]]
    text = "\n\n".join(filter(None, (doc.short_description, doc.long_description)))
    parser = OneLineErrors(prog=f"python -m mlp_lm {command}", description=text)
    for name in optional:
        kind, default = parameters[name].annotation, parameters[name].default
        parser.add_argument(name, nargs="?", type=kind, default=default, help=described.get(name))
    for name in sorted(switches):
        parser.add_argument(f"--{name}", action="store_true", help=described.get(name))
    for name in repeated:
        parser.add_argument(f"--{name}", action="append", default=[], help=described.get(name))
    parser.add_function_arguments(function, as_positional=True, skip={*switches, *optional, *repeated})
    found = parser.parse_args(args).as_dict()
    return [found.pop(name) for name in optional], found


def check_config_file(path: str) -> None:
    """Raise SettingsError where a config file is missing, no text, no YAML, or not a mapping of our sections."""
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_CONFIG_BYTES + 1).decode()  # of a device, too, which has no end
        if len(text) > MAX_CONFIG_BYTES:
            raise SettingsError(f"{path}: more than {MAX_CONFIG_BYTES:,} bytes; expected a config in YAML")
        _check_size_in_memory(path, text)
        content = yaml.safe_load(text)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror}); expected a config in YAML") from error
    except (UnicodeDecodeError, yaml.reader.ReaderError) as error:
        raise SettingsError(f"{path}: not a text file; expected a config in YAML") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise SettingsError(f"{path}{line}: not YAML ({getattr(error, 'problem', None) or error})") from error
    except ValueError as error:  # a number of thousands of digits, a 13th month
        raise SettingsError(f"{path}: a value that is none ({str(error).partition(';')[0]})") from error
    if not isinstance(content or {}, dict):
        raise SettingsError(f"{path}: not a config; expected sections such as data:, model: and trainer:")
    if (content or {}).get("config") is not None:
        raise SettingsError(f"{path}: config: found in a config, expected on the command line alone")
    for name in content or {}:
        section, dot, setting = str(name).partition(".")
        if dot:
            raise SettingsError(f"{path}: found {shown(name)}, expected {setting} in the section {section}:")
    for section in ("data", "model", "trainer"):
        if not isinstance(values := (content or {}).get(section) or {}, dict):
            raise SettingsError(f"{path}: {section}: found {shown(values)}, expected settings, one a line")
        for name in LINKED if section == "model" else ():
            if name in values:
                raise SettingsError(
                    f"{path}: model.{name} follows from the data; set data.context_size or leave it out"
                )


def _check_size_in_memory(path: str, text: str) -> None:
    """Raise SettingsError for YAML that takes time or memory beyond its size: aliases, and brackets in brackets."""
    depth = 0
    for token in yaml.scan(text, yaml.SafeLoader):
        depth += isinstance(token, OPENS) - isinstance(token, CLOSES)
        where = f"{path}:{token.start_mark.line + 1}"
        if isinstance(token, yaml.AliasToken):
            raise SettingsError(f"{where}: an alias, *{token.value}; write out what it stands for")
        if depth > MAX_DEPTH:
            raise SettingsError(f"{where}: nested more than {MAX_DEPTH} deep; expected data:, model: and trainer:")


def flag_values(args: list[str], *flags: str) -> list[str]:
    """The values that a command line gives to a flag, before any parser has seen it."""
    values = []
    for arg, following in pairwise([*args, ""]):
        flag, equals, value = arg.partition("=")
        if flag in flags:
            values.append(value if equals else following)
    return values


def configs_first(args: list[str]) -> list[str]:
    """`args` with its `--config FILE` in front, so that the other flags win wherever they stand."""
    configs: list[str] = []
    others: list[str] = []
    rest = iter(args)
    for arg in rest:
        if arg in ("--config", "-c"):
            configs += [arg, *islice(rest, 1)]
        elif re.match("-c.", arg):  # `-cFILE` and `-c=FILE`, which are the same to argparse
            configs.append(f"--config={arg[2:].removeprefix('=')}")
        else:
            (configs if arg.startswith("--config=") else others).append(arg)
    return configs + others


def with_underscores(arg: str) -> str:
    """`--top-k` as `--top_k`; values and other arguments as they are."""
    flag, equals, value = arg.partition("=")
    return flag[:2] + flag[2:].replace("-", "_") + equals + value if re.match(r"--[a-z]", flag) else arg
