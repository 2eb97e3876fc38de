"""What all command-line parsers share: a user error is one SettingsError line, with a suggestion; config files."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import islice, pairwise
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser

from mlp_lm.errors import SettingsError
from mlp_lm.settings import Range

LINKED = ("vocab_size", "context_size")  # settings of the model that follow from the data


class OneLineErrors(ArgumentParser):
    """An ArgumentParser that raises SettingsError with one line instead of printing its usage."""

    reasons: Mapping[str, str] = {}  # why a setting known from elsewhere is not available

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)  # an abbreviation may mean another flag tomorrow

    def show_ranges(self, allowed: Mapping[str, Range]) -> None:
        """Add to each help text which numbers are allowed, and leave out the markup of Lightning's own."""
        for action in self._actions:  # argparse offers no public way to them
            if isinstance(action.help, str):
                action.help = re.sub(r":\w+:`[~\w.]*?(\w+)`", r"\1", action.help).replace("``", "")
            if action.dest in allowed:
                action.help = f"{(action.help or '').rstrip('.')}; {allowed[action.dest]}."

    def hide(self, is_hidden: Callable[[str], bool]) -> None:
        """Leave settings out of the help that a command accepts, as configs have them, but makes no use of."""
        for action in self._actions:
            if is_hidden(action.dest):
                action.help = argparse.SUPPRESS

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise SettingsError with jsonargparse's `message`, shortened, and the known name nearest to a wrong one."""
        message = message.replace("Unrecognized arguments", "unrecognized arguments")  # the case depends on its version
        raise SettingsError(_one_line(message) + self._hint(message)) from ex

    def _hint(self, message: str) -> str:
        options = _option_names(self)
        if flag := re.search(r"unrecognized arguments: [–—](\S+)", message):  # what some editors make of `--`
            return f"; did you mean --{flag[1]}?"
        if text := re.search(r"unrecognized arguments: ([^-]\S*)", message):  # `fit mine.txt`
            meant = "config" if text[1].endswith((".yaml", ".yml")) else "data.path"
            return f"; did you mean --{meant} {text[1]}?" if meant in options else ""
        wrong = re.search(r"unrecognized arguments: -*([\w.-]+)|(?:[Oo]ption|key) ['\"]([\w.-]+)['\"]", message)
        if not wrong:
            return ""
        name = next(filter(None, wrong.groups())).replace("-", "_")
        if reason := self.reasons.get(name.split(".")[-1]):
            return f"; {reason}"
        if "vary" in options and name.startswith(("data.", "model.", "trainer.")):
            return f"; did you mean --vary {name}=...?"
        return did_you_mean(name, options, "--" if "unrecognized" in message else "")


def did_you_mean(name: str, names: Collection[str], dashes: str = "") -> str:
    """`; did you mean …?` with the one of `names`, dotted ones too, that is most like `name`; else nothing."""
    by_last_part = {known.split(".")[-1]: known for known in names}  # a section may be wrong, too
    near = difflib.get_close_matches(name, names, n=1) or [
        by_last_part[part] for part in difflib.get_close_matches(name.split(".")[-1], by_last_part, n=1)
    ]
    return f"; did you mean {dashes}{near[0]}?" if near and near[0] != name else ""


def _option_names(parser: argparse.ArgumentParser) -> list[str]:
    """The names of all options that the help of a parser and of its subcommands shows."""
    names = []
    for action in parser._actions:
        if action.help != argparse.SUPPRESS:
            names += [option.removeprefix("--") for option in action.option_strings]
        if isinstance(action.choices, dict):
            names += [name for subparser in action.choices.values() for name in _option_names(subparser)]
    return names


def _one_line(message: str) -> str:
    """jsonargparse's message on a line: where, what was found, what was expected."""
    text = " ".join(message.split())
    if unknown := re.match(r"(?:Group '(\w+)' does not accept option|Option) '([\w.]+)'", text):
        return f"{'.'.join(filter(None, unknown.groups()))}: no such setting"
    key = re.search(r"Parser key \"([^\"]+)\": *", text)
    if not key:
        return text
    name = key[1]
    if missing := re.search(r"arguments are required: (\w+).*class_path='[\w.]*?(\w+)'", text):
        return f"{name}: {missing[2]} needs {missing[1]}; add --{name}.{missing[1]}"
    if nested := re.search(r"- (\w+: found .*?, expected \w+)", text):
        return f"{name}.{nested[1]}"
    if unknown := re.search(r"Option '(\w+)' is not accepted", text):
        return f"{name}: found the option {unknown[1]!r}, which it does not have"
    value = re.search(r".*(?:Got|Given) value: ?(.*)$", text)  # the last, which is the one that was given
    expected = re.search(r"Subtypes: [\[(](.*?)[\])] ", text) or re.search(r"Expected an? (.*?)\. Got value", text)
    if value and expected:
        choices = re.search(r"Literal\[(.*)\]", expected[1])
        types = choices[1].replace("'", "") if choices else re.sub(r"<class '([\w.]+)'>", r"\1", expected[1])
        types = re.sub(r"\w+(?:\.\w+)*\.(\w+)", r"\1", types).replace("NoneType", "null").replace(", ", " or ")
        return f"{name}: found {'null' if value[1] == 'None' else repr(value[1])}, expected {types}"
    return text.replace(key[0], f"{name}: ")


# -- config files ------------------------------------------------------------------------------------------------------


def check_config_file(path: str) -> None:
    """Raise SettingsError unless a config file is YAML with our sections, each setting once."""
    if not path:
        raise SettingsError("config: found '', expected the name of a config in YAML")
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        tree, content = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror}); expected a config in YAML") from error
    except (UnicodeDecodeError, yaml.reader.ReaderError) as error:
        raise SettingsError(f"{path}: not a text file; expected a config in YAML") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise SettingsError(f"{path}{line}: not YAML ({getattr(error, 'problem', None) or error})") from error
    except ValueError as error:  # a 13th month
        raise SettingsError(f"{path}: invalid value ({error})") from error
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: not a config; expected sections such as data:, model: and trainer:")
    for number, key in _repeated_keys(tree):
        raise SettingsError(f"{path}:{number}: {key} occurs twice; expected each section and each setting once")
    for name in ("config", "ckpt_path"):
        if content.get(name) is not None:
            raise SettingsError(f"{path}: {name} is allowed only on the command line, not in a config")
    for name in content:
        if not isinstance(name, str):
            raise SettingsError(f"{path}: found the key {name!r}, expected sections such as data:, model: and trainer:")
        section, dot, setting = name.partition(".")
        if dot:
            raise SettingsError(f"{path}: found {name!r}, expected {setting} in the section {section}:")
    for section in ("data", "model", "trainer"):
        if not isinstance(values := content.get(section) or {}, dict):
            raise SettingsError(f"{path}: {section}: found {values!r}, expected settings, one a line")
    for name in LINKED:
        if name in (content.get("model") or {}):
            raise SettingsError(f"{path}: model.{name} follows from the data; set data.context_size or leave it out")


def _repeated_keys(node: yaml.Node | None) -> Iterator[tuple[int, str]]:
    """Line and name of each key that a mapping has twice: YAML would let the last one win."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                yield key.start_mark.line + 1, str(key.value)
            seen.add(key.value)
            yield from _repeated_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _repeated_keys(value)


# -- command lines -----------------------------------------------------------------------------------------------------


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
