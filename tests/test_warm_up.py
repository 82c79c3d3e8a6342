"""Compiling ahead: what a training needs is found."""

import pytest
from forked import run_code

from nanochat.cpp import cpp_compiler

FLAGS = (
    "--depth=2",
    "--width=64",
    "--head-dim=64",
    "--sequence-len=96",
    "--tie-word-embeddings",
    "--vocab-size=4096",
)
WARM = """
from nanochat.configurator import cli
from scripts import warm_up
cli(warm_up.main, warm_up.Config)
"""
TRAIN = """
import torch
from nanochat.common import compute_init
from nanochat.dataloader import Batch
from nanochat.gpt import GPT, GPTConfig
from nanochat.loss import LossFn
compute_init("cpu")
shape = GPTConfig.from_depth(2, 4096, 64, 64, sequence_len=96, tie_word_embeddings=True)
model = GPT(shape, seed=2)
loss_fn, ids = LossFn(model, compiled=True), torch.ones(42, 96, dtype=torch.long)
loss_fn(model, Batch(ids, ids)).backward()
from torch._dynamo.utils import counters
print(counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"])
"""


@pytest.mark.slow
@pytest.mark.skipif(not cpp_compiler(), reason="needs a C++ compiler")
def test_a_training_finds_what_was_compiled_ahead(tmp_path):
    places = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    places |= {"NANOCHAT_BASE_DIR": str(tmp_path), "NANOCHAT_DTYPE": "float32"}
    done = run_code(WARM, *FLAGS, **places)
    assert done.returncode == 0, done.stderr
    warm = run_code(TRAIN, **places)
    found, missed = map(int, warm.stdout.split()[-2:])
    assert found > 0 and missed == 0
