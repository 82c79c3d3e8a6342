"""Ranks as processes: one decision for all, failures heard by everybody."""

import contextlib
import io
import os
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from forked import start as start_process

from nanochat.checkpoint.writing import Writer
from nanochat.common import CheckpointError, ConfigError, on_rank0
from nanochat.files import base_dir
from nanochat.train import (
    DivergedError,
    LoopState,
    LossScaler,
    OneRank,
    optimizer_step,
    read_step,
)
from nanochat.training import stopping
from nanochat.training.config import StageConfig, check_settings
from nanochat.training.optimizers import build_optimizers
from nanochat.training.resume import find_resume, move_aside
from nanochat.training.stage import Stage


def start() -> None:
    for work in (begin_anew, hear_a_failure):
        work(dist.get_rank(), base_dir())


def begin_anew(rank: int, folder: Path) -> None:
    for i in range(5):
        run = folder / "base_checkpoints" / f"d{i}"
        if rank == 0:
            run.mkdir(parents=True)
        config = StageConfig(fresh=True)
        with contextlib.redirect_stdout(io.StringIO()):
            dist.barrier()
            found = on_rank0(lambda tag=run.name, c=config: find_resume("base", tag, c))
            on_rank0(lambda folder=run: move_aside(folder))
        assert found is None and not run.exists()


def hear_a_failure(rank: int, folder: Path) -> None:
    def refuse():
        raise ConfigError("no such run")

    assert on_rank0(lambda: rank) == 0
    with pytest.raises(ConfigError, match="no such run"):
        on_rank0(refuse)
    with Writer() as writer:
        writer.run(lambda: (_ for _ in ()).throw(CheckpointError("the disk is full")))
        with pytest.raises(CheckpointError, match="the disk is full"):
            writer.wait()
        writer.run(lambda: (folder / "written").touch())
        writer.wait()
    assert (folder / "written").exists()


@pytest.mark.slow
def test_ranks_decide_and_hear_as_one(tmp_path, rank_processes):
    rank_processes.run({"start": (start, 3, 3, {})}, tmp_path)


def beat(rank: int, folder: Path) -> None:
    """Three ranks: in a step that takes longer than the beats that may be missed, then with one
    that has stopped."""
    os.dup2(os.open(folder / f"printed-{rank}", os.O_WRONLY | os.O_CREAT), 1)
    stopping.BEAT_SECONDS = 0.2
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=3)
    with stopping.heartbeat():
        time.sleep(stopping.BEAT_SECONDS * stopping.MISSED_BEATS * 2)
        if rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(600)


@pytest.mark.slow
def test_a_slow_step_is_waited_for_and_a_rank_that_hangs_is_not(tmp_path):
    ranks = [start_process(beat, rank, tmp_path) for rank in range(3)]
    for rank in (0, 2):
        ranks[rank].join(300)
        assert ranks[rank].exitcode == 1
        printed = (tmp_path / f"printed-{rank}").read_text()
        assert f"rank {rank} ends: rank 1 is silent" in printed
    ranks[1].kill()
    ranks[1].join()


def test_8_bit_products_are_refused_where_there_are_none():
    with pytest.raises(ConfigError, match="--fp8 needs a GPU"):
        Stage("base", StageConfig(device_type="cpu", fp8=True))


def test_probabilities_of_rl_are_over_all_ids():
    with pytest.raises(ConfigError, match="--sampled-ids: rl compares probabilities"):
        check_settings("rl", StageConfig(sampled_ids=9), torch.device("cpu"))


def test_one_infinite_gradient_stops_every_optimizer(tiny_model, tiny_batch):
    model, scaler = tiny_model(), LossScaler(scale=8.0)
    optimizers = list(build_optimizers(model, StageConfig()).values())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    model.lm_head.weight.grad[0, 0] = float("inf")
    before = [p.detach().clone() for p in model.parameters()]
    norm = optimizer_step(model, OneRank(model), optimizers, 1.0, scaler)
    assert not torch.isfinite(norm) and scaler.scale == 4.0
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert all(o.num_steps == 0 for o in optimizers)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    assert torch.isfinite(optimizer_step(model, OneRank(model), optimizers, 1.0, scaler))
    assert not any(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_an_infinite_loss_in_float16_is_a_skipped_step():
    state, logged = LoopState(step=1, num_steps=9), []
    pending = {
        "step": 1,
        "loss_and_norm": torch.tensor([float("inf"), float("nan")]),
        "totals": torch.tensor([10, 10, 0]),
        "start": 0.0,
        "end": 1.0,
        "scaled": True,
        "values": {"lr": 1.0},
    }
    assert not read_step(pending, state, lambda state, metrics: logged.append(metrics), [])
    assert state.skipped == 1 and state.average_loss == 0 and len(logged) == 1
    # the average begins with the first loss that counts: half of it would look like a rise later
    pending |= {"step": 2, "loss_and_norm": torch.tensor([11.0, 1.0])}
    read_step(pending, state, lambda state, metrics: None, [])
    assert state.average_loss == state.best_loss == 11.0


def test_a_run_that_overflows_without_end_is_not_skipped_silently():
    scaler = LossScaler()
    with pytest.raises(DivergedError, match="overflowed"):
        for _ in range(100):
            assert not scaler.accept(torch.tensor(float("nan")))
