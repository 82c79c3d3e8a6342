"""Batch plans and optimizers by hand."""

import pytest
import torch

from nanochat.common import ConfigError
from nanochat.train import LoopState
from nanochat.training.config import (
    StageConfig,
    build_optimizers,
    can_compile,
    make_schedule,
    plan_batch,
)


@pytest.mark.parametrize(
    "rows, size, expected, told",
    [
        (16, 4, (16, 4), False),
        (16, 64, (16, 16), False),  # no more than a step has
        (10, 4, (12, 4), True),  # rounded up to whole micro-batches
        (1, 8, (1, 1), False),
    ],
)
def test_plan_divides_and_says_what_it_rounds(tiny_model, capsys, rows, size, expected, told):
    assert plan_batch(tiny_model(), StageConfig(device_batch_size=size), rows, 32) == expected
    assert ("do not divide" in capsys.readouterr().out) == told


def test_auto_on_a_cpu_fills_a_micro_batch(tiny_model):
    assert plan_batch(tiny_model(), StageConfig(), 1024, 256)[1] == 16


def test_an_impossible_size_is_refused(tiny_model):
    with pytest.raises(ConfigError, match="at least 1 row"):
        plan_batch(tiny_model(), StageConfig(device_batch_size=0), 8, 32)


def test_every_parameter_has_one_optimizer_and_the_right_rate(tiny_model):
    model = tiny_model()
    optimizers = build_optimizers(model, StageConfig(lr_scale=0.5))
    owned = [p for o in optimizers.values() for g in o.param_groups for p in g["params"]]
    assert sorted(map(id, owned)) == sorted(map(id, model.parameters()))
    embedding, head = optimizers["adamw"].param_groups
    width_factor = (32 / 768) ** -0.5
    assert embedding["lr"] == pytest.approx(0.2 * 0.5 * width_factor)
    assert head["lr"] == pytest.approx(0.004 * 0.5 * width_factor)
    assert optimizers["muon"].param_groups[0]["lr"] == pytest.approx(0.01)
    assert all(p.ndim == 2 for p in optimizers["muon"].param_groups[0]["params"])


def test_momentum_warms_up():
    schedule = make_schedule(StageConfig())
    assert schedule(LoopState(step=0, num_steps=1000))["momentum"] == pytest.approx(0.85)
    assert schedule(LoopState(step=150, num_steps=1000))["momentum"] == pytest.approx(0.90)
    assert schedule(LoopState(step=900, num_steps=1000))["momentum"] == pytest.approx(0.95)


def test_without_a_compiler_a_line_says_so(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    assert not can_compile(torch.device("cpu"), True)
    assert "no C++ compiler found" in capsys.readouterr().out
