"""Several ranks against one: the same weights, each rank its share of the work, equal replicas."""

import copy
import math
from itertools import repeat
from types import SimpleNamespace

import pytest
import torch
from conftest import make_batch, make_model

from bench import scale
from nanochat import loss
from nanochat.common import rank_and_world
from nanochat.dataloader import Batch
from nanochat.files import base_dir
from nanochat.loss import LossFn
from nanochat.train import DivergedError, LoopState, train
from nanochat.training import batch_plan
from nanochat.training.config import StageConfig
from nanochat.training.distributed import ReduceIn16Bits, deal, join, rows_of_ranks, shard
from nanochat.training.optimizers import build_optimizers, make_schedule
from nanochat.training.stage import Stage

STEPS, ROWS, ACCUM = 3, 24, 2
# Nothing divides by 4: 18 matrices, of 18 x 18, 6 x 18 (grouped heads), 72 x 18 and 18 x 72, so
# rank 3 of 4 has no rows of the second kind, and no matrix of the last round.
SHAPE = {"n_embd": 18, "n_head": 3, "head_dim": 6, "n_kv_head": 1, "vocab_size": 64, "n_layer": 3}


def micro_batches() -> list[Batch]:
    """This rank's of a step; in the last, rank 1 of 4 has no target, others have some."""
    rank, world = rank_and_world()
    batch = make_batch(B=ROWS, V=SHAPE["vocab_size"])
    batch.targets[15:18] = -1
    batch.targets[3, 4:] = -1
    each = ROWS // ACCUM // world
    parts = [slice(first, first + each) for first in range(rank * each, ROWS, each * world)]
    return [Batch(batch.inputs[part], batch.targets[part]) for part in parts]


def start(config: StageConfig, weights: dict | None = None, tied: bool = False):
    """(model, with random weights by default, ranks, optimizers)"""
    model = make_model(**SHAPE, tie_word_embeddings=tied)
    generator = torch.Generator().manual_seed(1 + rank_and_world()[0])  # rank 0's are the model's
    with torch.no_grad():
        for name, p in model.named_parameters():
            drawn = torch.randn(p.shape, generator=generator) / p.shape[-1] ** 0.5
            p.copy_(weights[name] if weights else drawn)
    for block in model.model.layers[: config.checkpoint_blocks]:
        block.recompute = True
    if rank_and_world()[1] > 1:
        shard(model, config, torch.device("cpu"), compiled=False)
    ranks = join(model, config)
    return model, ranks, build_optimizers(model, config, ranks.owned)


def go_on(model, ranks, optimizers, config, first: int) -> list[tuple]:
    """(loss, norm) of the next STEPS steps"""
    figures = []
    train(
        model, list(optimizers.values()), repeat(micro_batches()),
        loss_fn=LossFn(model, compiled=False), schedule=make_schedule(config), ranks=ranks,
        state=LoopState(step=first, num_steps=first + STEPS),
        log=lambda state, m: figures.append((m["loss"], m["grad_norm"])),
        grad_clip=config.grad_clip,
    )  # fmt: skip
    return figures


def states(ranks, optimizers) -> dict:
    return {name: ranks.whole_state(name, optimizer) for name, optimizer in optimizers.items()}


def try_a_size(model) -> int:
    """As --device-batch-size=auto: of 4 rows 1000 bytes were there before and 4000 are added; the
    optimizers may take 2000, and of rank 0's 10,000 usable bytes 94% are used: 6 rows."""
    rank, world = rank_and_world()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_plan, "usable_memory", lambda device: 10_000 * (1 + rank))
        patch.setattr(torch.cuda, "memory_allocated", lambda device: 1000)
        patch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5000)
        for name in ("reset_peak_memory_stats", "empty_cache"):
            patch.setattr(torch.cuda, name, lambda *device: None)
        loss_fn = LossFn(model, compiled=False)
        return batch_plan.rows_that_fit_all_ranks(model, loss_fn, 7 + world - rank, row_tokens=8)


def train_job(resume_from=None, tied=False, **settings) -> dict:
    config, saved = StageConfig(weight_decay=0.1, **settings), {}
    if resume_from and rank_and_world()[0] == 0:
        saved = torch.load(base_dir() / f"{resume_from}-0.pt", weights_only=False)
    model, ranks, optimizers = start(config, saved.get("weights"), tied)
    if resume_from:
        whole = saved.get("whole", {})
        for name, optimizer in optimizers.items():
            optimizer.load_state_tensors(ranks.own_state(name, whole.get(name, {})))
    size = try_a_size(model) if rank_and_world()[1] > 1 else None
    owned = {name: tuple(tensor.shape) for name, tensor in ranks.owned.items()}
    resumed = copy.deepcopy(states(ranks, optimizers))
    figures = go_on(model, ranks, optimizers, config, first=STEPS if resume_from else 0)
    return {
        "resumed": resumed,
        "figures": figures,
        "size": size,
        "weights": ranks.weights(model),
        "whole": states(ranks, optimizers),
        "owned": owned,
        "difference": ranks.first_difference(model),
    }


def bfloat16_job(**settings) -> dict:
    """As on GPUs: the loss is computed with a head in 16 bits, a chunk of 8 rows at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_DTYPE", "bfloat16")
        patch.setattr(loss, "CPU_CHUNK_LOGITS", 8 * SHAPE["vocab_size"])
        return train_job(**settings)


def drift_job() -> str:
    """A bit of one rank's weights turns over."""
    model, ranks, _ = start(StageConfig(shard_group=2))
    stage, state = SimpleNamespace(model=model, ranks=ranks), LoopState(step=7)
    Stage.check_replicas(stage, state)
    if rank_and_world()[0] == 1:
        weight = model.model.layers[1].mlp.fc1.weight.to_local().data
        weight[3, 3] = torch.nextafter(weight[3, 3], torch.tensor(9.0))
    with pytest.raises(DivergedError) as error:
        Stage.check_replicas(stage, state)
    return str(error.value)


SMALL = {"depth": 2, "vocab_size": 512, "sequence_len": 16, "rows_per_step": 24}
BYTES = {
    "bytes of three": (3, 3, {}),
    "bytes of two nodes": (4, 2, {"shard_group": 2}),
    "bytes of shards": (4, 4, {"shard": True}),
    "bytes of 16 bits": (4, 2, {"reduce_dtype": "bfloat16"}),
}


def bytes_job(**settings) -> dict:
    return scale.measure(scale.Config(**SMALL, **settings))


def sum_job() -> torch.Tensor:
    """256 + 1: bfloat16 has no 257, so a sum in it would be 256. The second half is rank 1's."""
    rank, world = rank_and_world()
    reduce, found = ReduceIn16Bits(torch.device("cpu"), world, world, node=2), torch.empty(2)
    mine = torch.tensor([256.0, 0.0, 1.0, 2.0]) if rank == 0 else torch.tensor([1.0, 0.0, 1.0, 4.0])
    reduce(output_tensor=found, input_tensor=mine, group=None, op=None)
    return found


JOBS = {
    **{name: (bytes_job, *given) for name, given in BYTES.items()},
    "sum": (sum_job, 2, 2, {}),
    "computed in 16 bits": (bfloat16_job, 2, 2, {"shard": True}),
    "16 bits": (train_job, 4, 2, {"reduce_dtype": "bfloat16"}),
    "two": (train_job, 2, 2, {}),
    "three": (train_job, 3, 3, {}),
    "four": (train_job, 4, 4, {}),
    "four again": (train_job, 4, 4, {}),
    "two nodes": (train_job, 4, 2, {"shard_group": 2}),
    "clipped": (train_job, 3, 3, {"grad_clip": 0.01}),
    "tied": (train_job, 3, 3, {"tied": True}),
    "tied shards": (train_job, 2, 2, {"tied": True, "shard": True}),
    "drift": (drift_job, 4, 2, {}),
    "shards of two": (train_job, 2, 2, {"shard": True}),
    "shards of three": (train_job, 3, 3, {"shard": True, "checkpoint_blocks": 2}),
    "two groups of shards": (train_job, 4, 4, {"shard": True, "shard_group": 2}),
    "1 to 3": (train_job, 3, 3, {"resume_from": "alone"}),
    "3 to 4": (train_job, 4, 2, {"resume_from": "three", "shard_group": 2}),
    "4 to shards of 2": (train_job, 2, 2, {"resume_from": "two nodes", "shard": True}),
    "shards to 4": (train_job, 4, 4, {"resume_from": "shards of three"}),
}
PLAIN = ["two", "three", "four", "two nodes"]
SHARDED = ["shards of two", "shards of three", "two groups of shards"]


@pytest.fixture(scope="module")
def results(tmp_path_factory, rank_processes):
    folder = tmp_path_factory.mktemp("ranks")
    alone = train_job()
    torch.save(alone, folder / "alone-0.pt")
    with pytest.MonkeyPatch.context() as patch:
        done = rank_processes.run(JOBS, folder)
        torch.save(done["two"][0], folder / "two-0.pt")
        patch.setenv("NANOCHAT_BASE_DIR", str(folder))
        more = {f"{name} to 1": [train_job(resume_from=name)] for name in ("alone", "two")}
    return done | more | {"alone": [alone]}


@pytest.fixture
def alone(results):
    return results["alone"][0]


def assert_close(weights: dict, expected: dict, rtol=1e-3, atol=1e-4) -> None:
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=rtol, atol=atol, msg=name)


def test_matrices_are_dealt_like_cards():
    named = [(n, p) for n, p in make_model(**SHAPE).named_parameters() if ".layers." in n]
    dealt = deal(named, 4)
    names = [[name.removeprefix("model.layers.") for name, _ in round] for round in dealt]
    assert names[0] == [f"{i}.mlp.{fc}.weight" for i in (0, 1) for fc in ("fc1", "fc2")]
    assert names[-1] == ["2.self_attn.k_proj.weight", "2.self_attn.v_proj.weight"]
    assert sum(map(len, names)) == len(named)
    assert [rows_of_ranks(7, 4), rows_of_ranks(2, 3)] == [[2, 2, 2, 1], [1, 1, 0]]


@pytest.mark.slow
@pytest.mark.parametrize("job", PLAIN + SHARDED)
def test_n_ranks_equal_one(results, alone, job):
    for mine in results[job]:
        assert mine["figures"] == results[job][0]["figures"]
    torch.testing.assert_close(
        torch.tensor(results[job][0]["figures"]), torch.tensor(alone["figures"]), rtol=1e-4, atol=0
    )
    assert_close(results[job][0]["weights"], alone["weights"])


@pytest.mark.slow
def test_gradients_in_16_bits_are_summed_in_32(results, alone):
    assert [found.tolist() for found in results["sum"]] == [[257, 0], [2, 6]]
    losses, expected = (
        [value for value, _ in r["figures"]] for r in (results["16 bits"][0], alone)
    )
    assert losses == pytest.approx(expected, rel=2e-3) and losses != expected


@pytest.mark.slow
def test_ranks_compute_in_16_bits(results, alone):
    losses, expected = (
        [value for value, _ in r["figures"]] for r in (results["computed in 16 bits"][0], alone)
    )
    assert losses == pytest.approx(expected, rel=1e-2) and losses != expected


@pytest.mark.slow
@pytest.mark.parametrize("job", ["two nodes", "two groups of shards", "3 to 4"])
def test_copies_have_the_same_bits(results, job):
    """Also as a comparison of all: rank 2 is the first of its group and has them whole."""
    for mine in results[job]:
        assert mine["difference"] is None
    for name, tensor in results[job][0]["weights"].items():
        assert torch.equal(results[job][2]["weights"][name], tensor), name


@pytest.mark.slow
def test_two_runs_have_the_same_bits(results):
    for name, tensor in results["four"][0]["weights"].items():
        assert torch.equal(results["four again"][0]["weights"][name], tensor), name


@pytest.mark.slow
@pytest.mark.parametrize("job", ["two", "three", "four"])
def test_each_rank_keeps_its_share(results, alone, job):
    shares = [sum(map(math.prod, mine["owned"].values())) for mine in results[job]]
    assert sum(shares) == sum(map(math.prod, alone["owned"].values()))
    assert max(shares) < 1.2 * sum(shares) / len(shares)


@pytest.mark.slow
@pytest.mark.parametrize("job", ["clipped", "tied", "tied shards"])
def test_clipping_is_by_the_norm_over_all_ranks_and_a_tied_head_is_one(results, job):
    settings = JOBS[job][3] | {"shard": False}
    assert_close(results[job][0]["weights"], train_job(**settings)["weights"])


@pytest.mark.slow
@pytest.mark.parametrize("job", BYTES)
def test_the_planner_knows_the_bytes_that_travel(results, job):
    """Headers and the counts of a step are 2% at most, even of so small a model."""
    world, _, settings = BYTES[job]
    planned = scale.planned_bytes(scale.Config(**SMALL, **settings), world)
    assert sum(rank["sent"] for rank in results[job]) / world == pytest.approx(planned, rel=0.02)


@pytest.mark.slow
def test_a_rank_that_drifted_is_found_by_the_parameters_name(results):
    for message in results["drift"]:
        assert message.startswith("step 7: the ranks no longer hold the same weights, first in ")
        assert "in model.layers.1.mlp.fc1.weight; resume" in message


@pytest.mark.slow
@pytest.mark.parametrize("job", PLAIN + SHARDED)
def test_ranks_agree_on_a_micro_batch_that_fits_all(results, job):
    """Tried before training, which test_n_ranks_equal_one finds unchanged by it."""
    assert [mine["size"] for mine in results[job]] == [6] * len(results[job])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "saved"),
    [
        ("1 to 3", "alone"),
        ("3 to 4", "three"),
        ("4 to shards of 2", "two nodes"),
        ("two to 1", "two"),
        ("shards to 4", "shards of three"),
    ],
)
def test_what_n_ranks_saved_m_ranks_resume(results, job, saved):
    saved, resumed = results[saved][0], results[job][0]
    for name, tensors in saved["whole"].items():
        assert resumed["resumed"][name].keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert torch.equal(resumed["resumed"][name][key], tensor), key
    assert_close(resumed["weights"], results["alone to 1"][0]["weights"])


@pytest.mark.slow
@pytest.mark.parametrize("job", PLAIN + SHARDED)
def test_the_optimizers_state_is_gathered_whole_on_rank_0(results, alone, job):
    whole = results[job][0]["whole"]
    assert whole.keys() == alone["whole"].keys()
    for name in whole:
        assert_close(whole[name], alone["whole"][name], rtol=1e-2, atol=1e-5)
        assert results[job][1]["whole"][name].keys() == {"num_steps"}
