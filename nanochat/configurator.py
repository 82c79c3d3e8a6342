"""A frozen dataclass becomes a command line: one flag a field, help from the docstring under it.

Built on tyro. Unknown flags and wrong types fail before anything runs; `--a_b` and `--a-b` mean the
same; a leading `--`, as torchrun users write it, is accepted; a switch is `--name` or `--no-name`.
"""

import getpass
import io
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


class LenientStream(io.TextIOWrapper):
    """Drops what can no longer be written: `| head -1`, a full disk, a lost terminal."""

    def write(self, text: str) -> int:
        self.attempt(super().write, text)
        return len(text)

    def flush(self) -> None:
        self.attempt(super().flush)

    def attempt(self, function: Callable, *arguments) -> None:
        try:
            function(*arguments)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())


def prepare_process() -> None:
    """Printing never fails from here on: a character that the locale lacks is written as \\xb1. A
    user without a home or a name, as in containers, gets the current folder and a number."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed: the next file that is opened would get its descriptor
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif stream is getattr(sys, f"__{name}__"):
            buffer = open(stream.fileno(), "wb", closefd=False)  # noqa: SIM115
            how = stream.encoding, "backslashreplace", None, stream.line_buffering
            setattr(sys, name, LenientStream(buffer, *how, stream.write_through))
    if sys.stdin and sys.stdin is sys.__stdin__:
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    home = os.path.expanduser("~")
    if not any(os.access(home + path, os.W_OK) for path in ("", "/.cache", "/.cache/nanochat")):
        os.environ["HOME"] = os.getcwd()
        line = f"no home folder that can be written to ({home}): {os.getcwd()} takes its place"
        print(line, file=sys.stderr, flush=True)
    try:
        getpass.getuser()
    except (KeyError, OSError):  # libraries name their caches after the user
        os.environ["USERNAME"] = f"user{os.getuid()}"


class Terminated(SystemExit):
    """SIGTERM came; raised where the script is, so that its `finally` blocks clean up."""


@contextmanager
def terminated_by_exception() -> Iterator[None]:
    """SIGTERM raises Terminated meanwhile, unless it has another handler; not with several ranks,
    which would not react while they wait for each other in C code."""
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
    prepare_process()
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
