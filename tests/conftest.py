"""What several test files need: a place of their own on disk, and the optional shared data."""

from pathlib import Path

import pytest
import torch
from hypothesis import settings

from nanochat.dataloader import Batch
from nanochat.gpt import GPT, GPTConfig

# A busy machine is no failure: examples have no time limit.
settings.register_profile("nanochat", deadline=None)
settings.load_profile("nanochat")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def base_dir(tmp_path, monkeypatch):
    """Every test writes into its own base folder, never into the user's."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "nanochat"))
    return tmp_path / "nanochat"


@pytest.fixture
def shared_data() -> Path:
    """Folder of real data sets that a developer may keep beside the checkout; absent elsewhere."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs the shared data folder {SHARED_DATA}, which is not here")
    return SHARED_DATA


@pytest.fixture(autouse=True)
def seeded():
    """The same generator state for every test; what compute_init switched on is switched off."""
    torch.manual_seed(0)
    yield
    torch.use_deterministic_algorithms(False)


def make_model(**overrides) -> GPT:
    """A model small enough that a step takes milliseconds; always the same weights."""
    shape = {"vocab_size": 128, "head_dim": 16, "sequence_len": 32, "n_embd": 32, "n_head": 2}
    shape |= {"n_kv_head": 2, **overrides}
    return GPT(GPTConfig.from_depth(2, **shape))


def make_batch(B: int = 4, T: int = 32, V: int = 128) -> Batch:
    """Random ids, always the same, each predicting the next."""
    ids = torch.randint(0, V, (B, T + 1), generator=torch.Generator().manual_seed(B * T))
    return Batch(ids[:, :-1], ids[:, 1:].clone())


@pytest.fixture
def tiny_model():
    return make_model


@pytest.fixture
def tiny_batch():
    return make_batch
