"""A frozen dataclass becomes a command line: one flag a field, help from the docstring under it.

Built on tyro. Unknown flags and wrong types fail before anything runs; `--a_b` and `--a-b` mean the
same; a leading `--`, as torchrun users write it, is accepted; a switch is `--name` or `--no-name`.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TypeVar

import tyro

from nanochat.common import NanochatError
from nanochat.files import user_path

Config = TypeVar("Config")


def parse(config_class: type[Config], args: Sequence[str] | None = None) -> Config:
    """Reads `args` (default: sys.argv[1:]) into a `config_class`; a bad flag exits with status 2.

    Example: parse(Config, ["--depth=4", "--device_batch_size", "8"]).depth == 4
    """
    args = list(sys.argv[1:] if args is None else args)
    config = tyro.cli(config_class, args=args[1:] if args[:1] == ["--"] else args)
    return replace(config, **{f.name: at_home(getattr(config, f.name)) for f in fields(config)})


def at_home(value):
    """The value of a flag, paths with ~ for the home folder."""
    if isinstance(value, tuple):
        return tuple(map(at_home, value))
    return user_path(value) if isinstance(value, Path) else value


class Terminated(SystemExit):
    """SIGTERM came; raised where the script is, so that its `finally` blocks clean up."""


@contextmanager
def terminated_by_exception() -> Iterator[None]:
    """SIGTERM raises Terminated meanwhile, unless it has another handler, or this is one of several
    ranks, which would not react while it waits for another in C code."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1 or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    owner = os.getpid()

    def leave(number, frame):
        if os.getpid() == owner:
            raise Terminated(128 + number)
        signal.signal(number, signal.SIG_DFL)  # a forked child has nothing to clean up
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def cli(main: Callable[[Config], None], config_class: type[Config]) -> None:
    """Runs `main` on the parsed flags. Exits with 1 after a NanochatError, printed without a
    traceback, 130 after Ctrl-C, 143 after SIGTERM."""
    try:
        config = parse(config_class)
        with terminated_by_exception():
            main(config)
    except NanochatError as error:
        print(f"\n{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr, flush=True)
        sys.exit(128 + signal.SIGINT)
    except Terminated:
        print("\nterminated", file=sys.stderr, flush=True)
        raise
