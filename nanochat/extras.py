"""Packages that only some commands need."""

import importlib.util

from nanochat.common import ConfigError

INSTALL = "pip install -c constraints.txt -e '.[export]'"


def need(module: str, remedy: str = INSTALL) -> None:
    """Raises ConfigError, with what to do, unless the module can be imported.

    Example: need("transformers")
    """
    if importlib.util.find_spec(module) is None:
        raise ConfigError(f"this needs the package {module}, which is not installed: {remedy}")
