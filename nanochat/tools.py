"""The tools that a chat program can give its model, by name."""

import contextlib
from collections.abc import Callable, Iterator

from nanochat.calculator import evaluate
from nanochat.common import ConfigError


@contextlib.contextmanager
def open_tool(name: str) -> Iterator[Callable[[str], str]]:
    """What tool calls are given to: text of a call -> text of its result, until the end of `with`.

    "calculator", or "python", which runs in a sandbox. Raises ConfigError for another name.

    Example: with open_tool("calculator") as tool: tool("37*12") == "444"
    """
    if name == "calculator":
        yield evaluate
    elif name == "python":
        from nanochat.execution import Sandbox, python_tool

        with Sandbox() as sandbox:
            yield python_tool(sandbox)
    else:
        raise ConfigError(f"tool {name!r} is unknown; choose calculator or python")
