"""Checks before a file is unpacked: it may come from anywhere, and must not cost more than its size lets expect."""

from __future__ import annotations

import os
import pickletools
import zipfile
from typing import Any

from mlp_lm.errors import CheckpointError, SettingsError

# What wrong parts of a file cause.
UNFIT = (KeyError, TypeError, ValueError, OverflowError, AttributeError, IndexError, RuntimeError, SettingsError)
REBUILD_TENSOR = "torch._utils _rebuild_tensor_v2"
STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
CLASSES = {"collections OrderedDict", REBUILD_TENSOR, *(f"torch {kind}Storage" for kind in STORAGES)}
NEVER_OURS = ("POP", "POP_MARK", "DUP")  # operations
MAX_OPERATIONS = 3_000_000  # of a pickle; a vocabulary of a million tokens takes two for each
MAX_TUPLE = 16  # elements of one that may be used twice, such as the shape of a tensor
MAX_CONTAINERS = 100_000  # of a pickle, each of which takes 60 to 200 bytes; a thousand layers take some 20,000


def check_zip(path: str | os.PathLike[str], most: int) -> list[str]:
    """The names of the entries of a zip file. What they unpack to is what they claim: readers stop there.

    Raises CheckpointError where that is more than `most` bytes, BadZipFile where it is no zip file of one meaning.
    """
    with zipfile.ZipFile(path) as file:
        entries = file.infolist()
    if len({entry.filename.lower() for entry in entries}) < len(entries):
        raise zipfile.BadZipFile("an entry stands there twice")  # which of the two is read depends on the reader
    if (unpacked := sum(entry.file_size for entry in entries)) > most:
        raise CheckpointError(f"{path}: damaged, or made to harm; it would unpack to {unpacked:,} bytes")
    return [entry.filename for entry in entries]


def check_checkpoint(path: str | os.PathLike[str]) -> None:
    """Raise CheckpointError, BadZipFile or what the wrong bytes cause, where `path` is not such a file as torch writes.

    torch stores without compression, so that a checkpoint never unpacks to more than its size.
    """
    names = check_zip(path, os.path.getsize(path))
    (pickled,) = (name for name in names if name.endswith("/data.pkl"))
    with zipfile.ZipFile(path) as file:
        _check_pickle(path, file.read(pickled))


def _check_pickle(path: str | os.PathLike[str], pickled: bytes) -> None:
    """Raise CheckpointError where a pickle names other classes than ours do, or uses a container twice.

    Only strings, classes, tensors and short flat tuples may be used twice. Else a few bytes could stand for an object
    of exponential size, such as a tuple of two tuples of two tuples …, whose hash alone would take for ever.
    """
    stack: list[str] = []  # of each object the name of its class, "mark", "plain", "tuple" (a flat one) or "container"
    marks: list[int] = []  # where they are
    memo: dict[Any, str] = {}
    containers = 0
    for number, (operation, arg, _) in enumerate(pickletools.genops(pickled)):
        name, before = operation.name, [item.name for item in operation.stack_before]
        if number == MAX_OPERATIONS or name in NEVER_OURS or (name == "GLOBAL" and arg not in CLASSES):
            raise CheckpointError(f"{path}: a checkpoint of another program; it holds objects that ours never do")
        if name.endswith("BINPUT"):
            memo[arg] = stack[-1]
        elif name.endswith("BINGET"):
            if memo[arg] == "container":
                raise CheckpointError(f"{path}: a checkpoint of another program; it holds a container twice")
            stack.append(memo[arg])
        else:
            first = len(stack) - len(before)
            if "mark" in before:  # all above the topmost mark, and what the operation takes from below it
                first = marks.pop() - before.index("mark")
            taken = stack[first:]
            del stack[first:]
            kind = _kind(name, arg, taken)
            if kind == "mark":
                marks.append(len(stack))
            stack += [kind] * len(operation.stack_after)
            containers += kind == "container"
            if containers > MAX_CONTAINERS:
                raise CheckpointError(f"{path}: a checkpoint of another program; it holds more parts than ours ever do")


def _kind(name: str, arg: object, taken: list[str]) -> str:
    """What an operation of a pickle makes of what it takes from the stack."""
    if name == "MARK":
        return "mark"
    if name == "GLOBAL":
        return str(arg)
    if name.startswith("TUPLE"):
        return "container" if {"tuple", "container"} & {*taken} or len(taken) > MAX_TUPLE else "tuple"
    if name == "REDUCE":
        return "plain" if taken[0] == REBUILD_TENSOR else "container"
    return "container" if taken or name in ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET") else "plain"
