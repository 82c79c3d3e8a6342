"""The loop: schedules by hand, accumulation, horizons, stopping, divergence, and two ranks."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import pytest
import torch
from conftest import make_batch, make_model
from forked import start
from rank_jobs import free_ports

from nanochat.common import compute_init, rank_and_world
from nanochat.dataloader import Batch
from nanochat.loss import LossFn
from nanochat.train import DivergedError, LoopState, Periodic, horizon_from_clock, train
from nanochat.training.config import StageConfig
from nanochat.training.distributed import join, shard
from nanochat.training.optimizers import build_optimizers, make_schedule, trapezoid


def run(model, micro_batches, accum_steps=1, num_steps=4, **options):
    losses, source = [], cycle(micro_batches)
    state = LoopState(num_steps=num_steps)
    if rank_and_world()[1] > 1:
        shard(model, StageConfig(), torch.device("cpu"), compiled=False)
    ranks = join(model, StageConfig())
    optimizers = build_optimizers(model, StageConfig(), ranks.owned)
    done = train(
        model,
        list(optimizers.values()),
        iter(lambda: [next(source) for _ in range(accum_steps)], None),
        loss_fn=LossFn(model, compiled=False),
        schedule=make_schedule(StageConfig()),
        state=state,
        ranks=ranks,
        log=lambda state, metrics: losses.append(metrics["loss"]),
        **options,
    )
    return losses, state, done


@pytest.mark.parametrize(
    "progress, factor", [(0.0, 0.0), (0.05, 0.5), (0.1, 1.0), (0.6, 1.0), (0.8, 0.55), (1.0, 0.1)]
)
def test_trapezoid_by_hand(progress, factor):
    assert trapezoid(progress, warmup=0.1, warmdown=0.4, final=0.1) == pytest.approx(factor)


def test_the_schedule_falls_at_the_end_and_never_rises_again():
    values = [trapezoid(i / 100, 0.0, 0.4) for i in range(101)]
    assert values[0] == 1 and values[-1] == 0
    assert all(a >= b for a, b in zip(values, values[1:], strict=False))


def test_accumulation_1x8_equals_8x1(tiny_model, tiny_batch):
    batch = tiny_batch(B=8)
    batch.targets[0, :10] = -1  # so that a mean of means would differ from the mean
    parts = [Batch(batch.inputs[i : i + 1], batch.targets[i : i + 1]) for i in range(8)]
    whole, split = tiny_model(), tiny_model()
    losses_whole, *_ = run(whole, [batch])
    losses_split, *_ = run(split, parts, accum_steps=8)
    assert losses_whole == pytest.approx(losses_split, rel=1e-5)
    for a, b in zip(whole.parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_the_loss_starts_at_ln_v_and_falls(tiny_model, tiny_batch):
    model = tiny_model()
    losses, state, done = run(model, [tiny_batch()], num_steps=30)
    assert losses[0] == pytest.approx(math.log(model.config.vocab_size), abs=0.02)
    assert losses[-1] < losses[0] - 1
    assert done and state.step == 30 and len(losses) == 30


def test_events_run_when_due(tiny_model, tiny_batch):
    seen = {"every 2": [], "end": [], "never": []}
    events = [
        Periodic(lambda s: seen["every 2"].append(s.step), 2),
        Periodic(lambda s: seen["end"].append(s.step), 0),
        Periodic(lambda s: seen["never"].append(s.step), -1),
    ]
    run(tiny_model(), [tiny_batch()], num_steps=5, events=events)
    assert seen == {"every 2": [2, 4, 5], "end": [5], "never": []}


def test_a_step_without_any_target_is_no_nan(tiny_model, tiny_batch):
    batch = tiny_batch()
    batch.targets[:] = -1
    losses, _, _ = run(tiny_model(), [batch], num_steps=2)
    assert losses == [0.0, 0.0]


def test_nan_stops_before_anything_is_saved(tiny_model, tiny_batch):
    model, saved = tiny_model(), []

    def poison(state):
        if state.step == 3:
            model.lm_head.weight.data[0, 0] = float("nan")

    events = [Periodic(lambda s: saved.append(s.step), 1), Periodic(poison, 1)]
    with pytest.raises(DivergedError, match="step 4: loss is nan"):
        run(model, [tiny_batch()], num_steps=9, events=events)
    assert saved == [1, 2, 3]


def test_a_rising_loss_stops(tiny_model, tiny_batch):
    model = tiny_model()

    def spoil(state):
        if state.step == 20:
            model.lm_head.weight.data.mul_(-30)

    with pytest.raises(DivergedError, match="the loss rose from"):
        run(model, [tiny_batch()], num_steps=60, events=[Periodic(spoil, 1)])


def test_a_policys_loss_may_rise(tiny_model, tiny_batch):
    """It is as large as its rewards, here -20 and 20 times a likelihood."""
    batch = tiny_batch()
    signs = [replace(batch, weights=torch.full(batch.targets.shape, w)) for w in (-20.0, 20.0)]
    losses, *_, done = run(tiny_model(), signs, num_steps=2)
    assert done and losses[1] > losses[0] + 50


def test_asked_to_stop_ends_the_loop_with_every_loss_logged(tiny_model, tiny_batch):
    calls = []
    losses, state, done = run(
        tiny_model(),
        [tiny_batch()],
        num_steps=50,
        asked_to_stop=lambda: len(calls) > 3 or bool(calls.append(1)),
    )
    assert not done and state.step < 10 and len(losses) == state.step


def test_seconds_become_steps():
    durations = [1.0, 7.0, 1.0, 1.0]  # the median step takes 1 s
    assert horizon_from_clock(durations, seconds=100, spent=40, step=7) == 67
    assert horizon_from_clock(durations, seconds=10, spent=40, step=7) == 8  # over time: one more


def test_a_horizon_in_seconds_ends_and_is_kept(tiny_model, tiny_batch):
    losses, state, done = run(tiny_model(), [tiny_batch(B=1, T=8)], num_steps=None, seconds=1.0)
    assert done and state.num_steps == state.step == len(losses) > 20


def test_a_horizon_in_seconds_is_timed_anew_when_half_of_the_rest_is_done(
    tiny_model, tiny_batch, monkeypatch
):
    horizons, asked = [103, 143, 133, 133], []

    def planned(durations, seconds, spent, step):
        asked.append((step, len(durations)))
        return horizons[len(asked) - 1]

    monkeypatch.setattr("nanochat.train.horizon_from_clock", planned)
    batches = [tiny_batch(B=1, T=8)]
    losses, state, _ = run(tiny_model(), batches, num_steps=None, seconds=9.0)
    first = asked[0][0]  # 20 timed steps after those that compile
    halves = [first, (first + 103) // 2, ((first + 103) // 2 + 143) // 2]
    assert len(losses) == state.num_steps == 133
    assert [step for step, _ in asked[:3]] == pytest.approx(halves, abs=1)
    assert asked[3][0] - asked[2][0] == 20  # of the last 30, for fewer say little
    asked.clear()
    run(tiny_model(), batches, num_steps=60)  # a number of steps is what it is
    assert not asked


RANK = """
import sys
sys.path.insert(0, "tests")
from test_train import write_losses
write_losses(sys.argv[1])
"""


def write_losses(path: str) -> None:
    _, rank, _, world, _ = compute_init("cpu")
    Path(path).write_text(json.dumps(losses_of_rank(rank, world)))


def losses_of_rank(rank: int, world: int) -> list[float]:
    batch = make_batch(B=4)
    batch.targets[0] = -1  # the ranks have different numbers of targets
    mine = slice(rank * 4 // world, (rank + 1) * 4 // world)
    parts = [Batch(batch.inputs[mine], batch.targets[mine])]
    return run(make_model(), parts, num_steps=5)[0]


@pytest.mark.slow
def test_two_ranks_equal_one(monkeypatch, tmp_path):
    """And end well: they leave without compute_cleanup, as after Ctrl-C, within gloo's group. The
    second one is a Python of its own, which takes seconds to start."""
    monkeypatch.setenv("NANOCHAT_DTYPE", "float32")
    [port] = free_ports(1)
    places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    places |= {"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    files = [str(tmp_path / rank) for rank in "01"]
    second = subprocess.Popen(
        [sys.executable, "-c", RANK, files[1]],
        cwd=Path(__file__).resolve().parents[1],
        env={**os.environ, **places, "RANK": "1", "LOCAL_RANK": "1"},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    first = start(write_losses, files[0], **places, RANK="0", LOCAL_RANK="0")
    alone = losses_of_rank(0, 1)
    first.join(300)
    _, errors = second.communicate(timeout=300)
    assert (first.exitcode, second.returncode) == (0, 0), errors[-2000:]
    for file in files:
        assert json.loads(Path(file).read_text()) == pytest.approx(alone, rel=1e-4)
