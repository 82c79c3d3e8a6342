"""Batch plans, optimizers and the settings of a resumed run by hand."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from nanochat.common import ConfigError
from nanochat.gpt import GPT, GPTConfig
from nanochat.loss import LossFn
from nanochat.train import LoopState
from nanochat.training.batch_plan import (
    BatchPlan,
    can_compile,
    divide_rows,
    plan_batch,
    rows_that_fit,
    training_bytes,
)
from nanochat.training.config import StageConfig
from nanochat.training.optimizers import build_optimizers, make_schedule
from nanochat.training.resume import compare_settings
from scripts import base_train


@pytest.mark.parametrize(
    "rows, ranks, largest, expected",
    [
        (16, 1, 4, BatchPlan(16, 4, 4)),
        (16, 1, 64, BatchPlan(16, 16, 1)),  # no more than a step has
        (10, 1, 4, BatchPlan(9, 3, 3)),
        (1, 1, 8, BatchPlan(1, 1, 1)),
        (256, 3, 32, BatchPlan(252, 28, 3)),
        (256, 6, 32, BatchPlan(252, 21, 2)),
        (256, 7, 32, BatchPlan(252, 18, 2)),
        (256, 8, 32, BatchPlan(256, 32, 1)),
        (2, 4, 8, BatchPlan(4, 1, 1)),  # a row a rank at least
    ],
)
def test_rows_are_divided_at_or_below_the_plan(rows, ranks, largest, expected):
    assert divide_rows(rows, ranks, largest) == expected


@pytest.mark.parametrize("ranks", range(1, 17))
def test_no_number_of_ranks_trains_much_less_than_planned(ranks):
    assert 240 <= divide_rows(256, ranks, 32).rows_per_step <= 256


def plan(model, rows: int, tokens: int, size="auto") -> BatchPlan:
    return plan_batch(model, size, rows, tokens, LossFn(model, False), False)


def test_a_plan_says_what_it_rounds(tiny_model, capsys):
    assert plan(tiny_model(), 16, 32, size=4) == BatchPlan(16, 4, 4)
    assert "do not divide" not in capsys.readouterr().out
    assert plan(tiny_model(), 10, 32, size=4) == BatchPlan(9, 3, 3)
    assert "9 rows a step" in capsys.readouterr().out


def test_auto_on_a_cpu_fills_a_micro_batch(tiny_model):
    assert plan(tiny_model(), 1024, 256).device_batch == 16


def test_an_impossible_size_is_refused(tiny_model):
    with pytest.raises(ConfigError, match="at least 1 row"):
        plan(tiny_model(), 8, 32, size=0)


def weightless(depth: int) -> GPT:
    """A model whose weights take no memory."""
    with torch.device("meta"):
        model = GPT(GPTConfig.from_depth(depth, vocab_size=65536), seed=None)
    model.compute_dtype = torch.bfloat16
    return model


def test_the_estimate_of_memory_is_what_an_h100_took():
    model = weightless(20)
    fixed, a_row = training_bytes(model, 2048, compiled=True)
    assert fixed + 32 * a_row == pytest.approx(64.9e9, rel=0.03)
    assert 32 <= rows_that_fit(model, 84e9, 2048, compiled=True) < 48
    assert rows_that_fit(model, 10e9, 2048, compiled=True) == 1


def test_every_parameter_has_one_optimizer_and_the_right_rate(tiny_model):
    model = tiny_model()
    optimizers = build_optimizers(model, StageConfig(lr_scale=0.5, adamw_beta2=0.99))
    owned = [p for o in optimizers.values() for g in o.param_groups for p in g["params"]]
    assert sorted(map(id, owned)) == sorted(map(id, model.parameters()))
    embedding, head = optimizers["adamw"].param_groups
    width_factor = (32 / 768) ** -0.5
    assert embedding["lr"] == pytest.approx(0.2 * 0.5 * width_factor)
    assert head["lr"] == pytest.approx(0.004 * 0.5 * width_factor)
    assert embedding["betas"] == head["betas"] == (0.8, 0.99)
    assert optimizers["muon"].param_groups[0]["lr"] == pytest.approx(0.01)
    assert all(p.ndim == 2 for p in optimizers["muon"].param_groups[0]["params"])


def test_momentum_warms_up():
    schedule = make_schedule(StageConfig())
    assert schedule(LoopState(step=0, num_steps=1000))["momentum"] == pytest.approx(0.85)
    assert schedule(LoopState(step=150, num_steps=1000))["momentum"] == pytest.approx(0.90)
    assert schedule(LoopState(step=900, num_steps=1000))["momentum"] == pytest.approx(0.95)
    schedule = make_schedule(StageConfig(momentum_warmup=0))
    assert schedule(LoopState(step=0, num_steps=1000))["momentum"] == pytest.approx(0.95)


def test_without_a_compiler_a_line_says_so(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    assert not can_compile(torch.device("cpu"), True)
    assert "no C++ compiler (looked for" in capsys.readouterr().out


def test_a_setting_that_an_older_run_did_not_have_was_its_default():
    old = asdict(base_train.Config(depth=3))
    del old["width"]
    meta = {"config": old, "data_fingerprint": "data"}
    compare_settings(Path("run"), base_train.Config(depth=3), meta, "data")
    with pytest.raises(ConfigError, match="trained with --width None, it cannot go on with 128"):
        compare_settings(Path("run"), base_train.Config(depth=3, width=128), meta, "data")
