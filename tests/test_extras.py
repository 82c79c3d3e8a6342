"""A package that is missing is told of, with the way to get it."""

import pytest

from nanochat.common import ConfigError, require_package


def test_a_missing_package_is_told_with_the_remedy():
    require_package("json")
    with pytest.raises(ConfigError, match=r"no_such_module.*pip install .*\[export\]"):
        require_package("no_such_module")
    with pytest.raises(ConfigError, match="build it yourself"):
        require_package("no_such_module", "build it yourself")
