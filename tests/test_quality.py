"""bench.quality's arithmetic by hand; its runs are those of the scripts, which have tests."""

import math

import pytest

from bench.quality import Config, Setting, mean_and_error, show
from nanochat.common import ConfigError


def test_mean_and_standard_error_by_hand():
    mean, error = mean_and_error([1.0, 2.0, 6.0])  # variance 7
    assert mean == 3 and math.isclose(error, math.sqrt(7 / 3))
    assert math.isnan(mean_and_error([5.0])[1])


def test_differences_are_paired_by_seed(capsys):
    results = {"a": [{"x": 1.0}, {"x": 5.0}], "b": [{"x": 2.0}, {"x": 6.0}]}
    show(results, {"a": 10, "b": 20}, "title")
    assert "(+1.000 ± 0.000)" in capsys.readouterr().out


def test_a_setting_has_a_name_and_flags():
    config = Config(stage="mid", parent="d3", common="--seed=1")
    setting = Setting("few steps: --muon-iterations=3", config)
    assert setting.tag == "quality-few-steps"
    assert setting.flags == ["--seed=1", "--muon-iterations=3", "--base-tag=d3"]
    with pytest.raises(ConfigError, match="is no setting"):
        Setting("few steps", config)
