"""`python -m mlp_lm COMMAND`: one table of commands, and one way to end for every mistake."""

from __future__ import annotations

import os
import re
import signal
import sys
from contextlib import suppress
from importlib import import_module
from typing import NamedTuple, NoReturn

from mlp_lm import __version__
from mlp_lm.errors import Interrupted, LostProcessError, MlpLmError
from mlp_lm.text.vocab import printable


class Command(NamedTuple):
    """What the top-level help says of a command, and where it is.

    `module:function` is a plain function whose signature is the command line; a module alone has a `run` that parses it
    itself, with LightningCLI.
    """

    summary: str
    target: str = "mlp_lm.training.lightning_cli"


COMMANDS = {
    "fit": Command("train a language model on a text file"),
    "validate": Command("loss of a checkpoint on the dev split"),
    "test": Command("loss of a checkpoint on the test split"),
    "predict": Command("most probable next token for every window of the dev split, as CSV"),
    "sample": Command("generate new items from a checkpoint or count model", "mlp_lm.commands.sample:sample"),
    "score": Command("log-probability of each item of a text file", "mlp_lm.commands.score:score"),
    "inspect": Command("what is in a corpus", "mlp_lm.commands.inspect:inspect"),
    "ngram": Command(
        "count baselines on the same split, and the mixture with a network", "mlp_lm.commands.ngram:ngram"
    ),
    "lr-find": Command("learning-rate range test: how high a rate the config bears", "mlp_lm.training.lr_find"),
    "sweep": Command("many runs, one table: a grid of settings, with several seeds", "mlp_lm.commands.sweep:sweep"),
    "plot": Command("embedding map and other figures", "mlp_lm.commands.plot:plot"),
}

MAX_MESSAGE = 4000  # characters
SMALLER = (
    "what takes less: a smaller data.batch_size, model.hidden_dim or model.embedding_dim, a text with fewer different "
    "characters, for sample a smaller --num or --max_length"
)

HELP = f"""\
usage: python -m mlp_lm COMMAND [options]

The MLP language model of Bengio et al. (2003): one text file in, a trained generator out.

commands:
{chr(10).join(f"  {name:<10}{command.summary}" for name, command in COMMANDS.items())}

python -m mlp_lm COMMAND --help    what a command takes
python -m mlp_lm --version         the version

First steps:
  python -m mlp_lm fit --config configs/names.yaml
  python -m mlp_lm sample runs/names/version_0/checkpoints/best.ckpt
"""


def main(args: list[str] | None = None) -> int:
    """Run one command; `args` are those of the command line unless given. Returns the exit code."""
    args = sys.argv[1:] if args is None else args
    if args and (typed := args[0].replace("_", "-")) in COMMANDS:  # hyphen or underscore, as in flags
        args = [typed, *args[1:]]
    try:
        _dispatch(args)
        sys.stdout.flush()
    except Interrupted as stop:
        if _is_first_process():
            print(f"mlp_lm {args[0]}: {stop}", file=sys.stderr)
        return stop.exit_code
    except MlpLmError as error:
        if _is_first_process() or isinstance(error, LostProcessError):  # the others meet all other mistakes, too
            _fail(args, str(error))
        return 2
    except BrokenPipeError:  # the reader has seen enough: `… | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
        return 141  # what shells report for SIGPIPE
    except UnicodeEncodeError as error:  # of what is printed: files are written as UTF-8
        return _fail(args, f"{error.object[error.start]!a} cannot be printed as {error.encoding}; set PYTHONUTF8=1")
    except OSError as error:  # a full disk, for one; what has a better explanation is an MlpLmError
        return _fail([], str(error))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _fail(args, f"out of memory; {SMALLER}")
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and not isinstance(stop.__context__, KeyboardInterrupt):
            raise  # the end of a help text; what Lightning makes of Ctrl-C is caught
        return 130  # what shells report for SIGINT
    return 0


def end(exit_code: int) -> NoReturn:
    """End this process; one of several at once, as Python's ordinary way may wait for torch's threads, or crash."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a Ctrl-C from here on would show what Python is tidying up
    if _local_rank() is None:
        sys.exit(exit_code)
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(exit_code)


def _local_rank() -> str | None:
    """The number of this process among those that were started together on a machine; None where it is alone."""
    return os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID"))


def _is_first_process() -> bool:
    return _local_rank() in (None, "0")


def is_out_of_memory(error: Exception) -> bool:
    """Whether Python, numpy or torch, which has no class for it on the CPU, asked for memory in vain."""
    return isinstance(error, MemoryError) or bool(re.search("(allocate|out of|not enough) memory", str(error)))


def _fail(args: list[str], message: str) -> int:
    """Print one line, whatever is quoted in it and however long that is. Returns the exit code."""
    name = f" {args[0]}" if args and args[0] in COMMANDS else ""
    text = printable(" ".join(message.split()))
    if len(text) > MAX_MESSAGE:  # what to do stands at the end
        text = f"{text[: MAX_MESSAGE // 2]} … {text[-MAX_MESSAGE // 2 :]}"
    print(f"mlp_lm{name}: error: {text}", file=sys.stderr, flush=True)
    return 2


def _dispatch(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP, end="")
    elif args[0] == "--version":
        print(f"mlp_lm {__version__}")
    elif args[0] not in COMMANDS:
        from mlp_lm.parsing import did_you_mean  # here and below: the help text needs no jsonargparse

        hint = did_you_mean(args[0], COMMANDS)
        raise MlpLmError(f"unknown command {args[0]!r}, expected one of {', '.join(COMMANDS)}{hint}")
    elif any("\0" in arg for arg in args):
        raise MlpLmError("an argument has a NUL character in it, which no file name or number can have")
    else:
        from mlp_lm.parsing import parse_call, with_underscores

        name, *rest = map(with_underscores, args)
        module, _, function = COMMANDS[name].target.partition(":")
        if function:
            command = getattr(import_module(module), function)
            positional, others = parse_call(command, name, rest)
            command(*positional, **others)
        else:
            import_module(module).run([name, *rest])
