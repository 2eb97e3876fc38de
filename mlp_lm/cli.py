"""`python -m mlp_lm COMMAND`, or `mlp_lm COMMAND`: finds the command, and turns every user error into one line."""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
from contextlib import suppress
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import NoReturn

from mlp_lm import __version__
from mlp_lm.commands import COMMANDS
from mlp_lm.errors import Interrupted, LostProcessError, MlpLmError, is_out_of_memory
from mlp_lm.terminal import escape

HELP = f"""\
usage: python -m mlp_lm COMMAND [options]

The MLP language model of Bengio et al. (2003): one text file in, a trained generator out.

commands:
{chr(10).join(f"  {name:<10}{command.summary}" for name, command in COMMANDS.items())}

python -m mlp_lm COMMAND --help    the options of a command
python -m mlp_lm --version         the version

First steps:
  python -m mlp_lm fit
  python -m mlp_lm sample runs/names/version_0
"""
# How often a thread of torch looks for work before it sleeps. By default, 300,000 times, threads that wait for each
# other keep the cores from other programs: on two cores, two fits of names.yaml at once took 5.7 times as long as one
# alone, with this count 2.9 times, and one alone 6 % longer. With 20,000: 2.4 times, and 11 %.
SPIN_COUNT = "30000"
LESS_MEMORY = (
    "use a smaller data.batch_size, model.hidden_dim or model.embedding_dim, a text with fewer distinct "
    "characters or data.max_vocab_size, for sample a smaller --num or --max_length, for mix a smaller --cache"
)


def main(args: list[str] | None = None) -> int:
    """Run one command; `args` are those of the command line by default. Returns the exit code."""
    args = sys.argv[1:] if args is None else args
    if args and (typed := args[0].replace("_", "-")) in COMMANDS:  # hyphen or underscore, as in flags
        args = [typed, *args[1:]]
    if sys.stdout is None:  # a shell closed it: `>&-`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)  # which OpenMP reads when torch is imported
    # Characters that a terminal or a log cannot show are escaped; samples and scores in a file must stay as they are.
    if isinstance(sys.stdout, io.TextIOWrapper) and (sys.stdout.isatty() or args[:1] not in (["sample"], ["score"])):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        _dispatch(args)
        sys.stdout.flush()
    except Interrupted as stop:
        if _is_first_process():
            print(f"mlp_lm {args[0]}: {stop}", file=sys.stderr)
        return stop.exit_code
    except MlpLmError as error:
        if _is_first_process() or isinstance(error, LostProcessError):  # the others get all other errors, too
            _fail(args, str(error))
        return 2
    except BrokenPipeError:  # the reader has seen enough: `… | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
        return 141  # what shells report for SIGPIPE
    except UnicodeEncodeError as error:  # of samples or scores; the files of other commands are UTF-8
        return _fail(
            args, f"{error.object[error.start]!a} cannot be printed as {error.encoding}; set PYTHONIOENCODING=utf-8"
        )
    except OSError as error:  # a full disk, for one; what has a better explanation is an MlpLmError
        return _fail(args, str(error))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _fail(args, f"out of memory; {LESS_MEMORY}")
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and not isinstance(stop.__context__, KeyboardInterrupt):
            raise  # the end of a help text; what Lightning makes of Ctrl-C is caught
        return 130  # what shells report for SIGINT
    return 0


def run_and_end() -> NoReturn:
    """Run the command line and end this process, for `python -m mlp_lm` and the script `mlp_lm`.

    One of several processes ends at once, as Python's ordinary way may wait for torch's threads, or crash.
    """
    exit_code = main()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a Ctrl-C from here on would show what Python is tidying up
    if _local_rank() is None:
        sys.exit(exit_code)
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(exit_code)


def _local_rank() -> str | None:
    """The number of this process among those that were started together on a machine; None if it is alone."""
    return os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID"))


def _is_first_process() -> bool:
    return _local_rank() in (None, "0")


def _fail(args: list[str], message: str) -> int:
    """Print one line, whatever is quoted in it. Returns the exit code."""
    name = f" {args[0]}" if args and args[0] in COMMANDS else ""
    print(f"mlp_lm{name}: error: {escape(' '.join(message.split()))}", file=sys.stderr, flush=True)
    return 2


def _dispatch(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP, end="")
    elif args[0] == "--version":
        print(f"mlp_lm {__version__}")
    else:
        from mlp_lm.parsing import did_you_mean, with_underscores  # here: the help text needs no jsonargparse

        name, *rest = map(with_underscores, args)
        if name not in COMMANDS:
            hint = did_you_mean(name, COMMANDS)
            raise MlpLmError(f"unknown command {name!r}, expected one of {', '.join(COMMANDS)}{hint}")
        path, _, function = COMMANDS[name].target.partition(":")
        module = _import(path)
        if function:
            from mlp_lm.function_parser import call

            call(getattr(module, function), name, rest)
        else:
            module.run([name, *rest], COMMANDS[name].summary)


def _import(path: str) -> ModuleType:
    """Import a module, and take the million objects that this makes out of the garbage collector's rounds: they stay,
    and visiting them time and again, the last time when the process ends, would take a second or two."""
    if path in sys.modules:  # where `main` is called more than once
        return import_module(path)
    gc.disable()
    try:
        module = import_module(path)
        _freeze_once()
    finally:
        gc.enable()
    return module


@cache
def _freeze_once() -> None:
    gc.freeze()  # a second time, it would keep what an earlier command has left
