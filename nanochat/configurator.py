"""A frozen dataclass becomes a command line: one flag a field, help from the docstring under it.

Built on tyro. Unknown flags and wrong types fail before anything runs; `--a_b` and `--a-b` mean the
same; a leading `--`, as torchrun users write it, is accepted; a switch is `--name` or `--no-name`.
"""

import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import tyro

from nanochat.common import NanochatError

Config = TypeVar("Config")


def parse(config_class: type[Config], args: Sequence[str] | None = None) -> Config:
    """Reads `args` (default: sys.argv[1:]) into a `config_class`; a bad flag exits with status 2.

    Example: parse(Config, ["--depth=4", "--device_batch_size", "8"]).depth == 4
    """
    args = list(sys.argv[1:] if args is None else args)
    if args and args[0] == "--":
        args = args[1:]
    return tyro.cli(config_class, args=args)


def cli(main: Callable[[Config], None], config_class: type[Config]) -> None:
    """Runs `main` on the parsed flags; what the user can mend is told without a traceback."""
    config = parse(config_class)
    try:
        main(config)
    except NanochatError as error:
        print(f"\n{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
