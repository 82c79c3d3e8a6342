"""The tools by name."""

import pytest

from nanochat.common import ConfigError
from nanochat.tools.sandbox import open_tool


def test_the_calculator():
    with open_tool("calculator") as tool:
        assert tool("37*12") == "444"


def test_python_runs_in_a_sandbox():
    execution = pytest.importorskip("nanochat.tools.sandbox")
    try:
        with open_tool("python") as tool:
            assert tool("x = 6\nx * 7") == "42"
            assert tool("1/0").startswith("error: ZeroDivisionError")
    except execution.ExecutionUnavailable as error:
        pytest.skip(f"no sandbox here: {error}")


def test_an_unknown_tool_names_the_known_ones():
    with pytest.raises(ConfigError, match="calculator or python"), open_tool("hammer"):
        pass
