"""What several test files need: a base folder of their own, tiny models, the optional shared data.

Under pytest-xdist (runs/test.sh) every worker, and what it starts, computes with one thread. The
process that starts the workers reads this file first, and is spared an import of torch.
"""

import functools
import gc
import itertools
import os
from pathlib import Path
from tempfile import TemporaryDirectory

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

import pytest
from hypothesis import settings

# A busy machine is no failure: examples have no time limit.
settings.register_profile("nanochat", deadline=None)
settings.load_profile("nanochat")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


LONGEST = ["test_pipeline.py", "test_page.py", "test_distributed.py", "test_notebook.py"]
LONGEST += ["test_export.py"]


def pytest_collection_modifyitems(items):
    """The longest files come first, and those without slow tests last, so that no worker ends with
    a long one alone."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}

    def place(item) -> int:
        name = item.path.name
        return LONGEST.index(name) if name in LONGEST else len(LONGEST) + (item.path not in slow)

    items.sort(key=place)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """What is imported here is no garbage, and looking for some among it takes seconds."""
    gc.disable()
    collected = yield
    gc.freeze()
    gc.enable()
    return collected


@pytest.fixture(scope="session")
def share_compiled(pytestconfig):
    """share_compiled(base): a new base folder finds the C++ that an earlier one compiled.

    Compiling takes seconds, and a program that a test starts would do it again. The libraries are
    kept in .pytest_cache, for all workers and the next run; they are named after what they are made
    of.
    """
    from nanochat.bpe import native

    kept = pytestconfig.cache.mkdir("compiled")

    def share(base: Path) -> Path:
        base.mkdir(parents=True, exist_ok=True)
        for name in (native.SOURCE.name, "decoder"):
            (kept / name).mkdir(exist_ok=True)
            (base / name).symlink_to(kept / name)
        return base

    return share


@pytest.fixture(scope="session", autouse=True)
def peak_flops_are_measured_once():
    """That takes a second, which every training in this process would take again."""
    from nanochat import hardware

    with pytest.MonkeyPatch.context() as patch:
        measure = functools.cache(hardware.measure_peak_flops)
        patch.setattr(hardware, "measure_peak_flops", measure)
        yield


@pytest.fixture(scope="session", autouse=True)
def base_dir_of_fixtures(share_compiled, tmp_path_factory):
    """Where fixtures that outlive a test write, unless they say otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(share_compiled(tmp_path_factory.mktemp("base"))))
        yield


@pytest.fixture(scope="session")
def new_base(tmp_path_factory, share_compiled):
    """Makes base folders. They are numbered here, for mktemp looks through all that there are."""
    folder, numbers = tmp_path_factory.mktemp("bases"), itertools.count()
    return lambda: share_compiled(folder / str(next(numbers)))


@pytest.fixture(autouse=True)
def base_dir(new_base, monkeypatch):
    """Every test writes into its own base folder, never into the user's; outside of tmp_path."""
    base = new_base()
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base))
    return base


@pytest.fixture(scope="session")
def rank_processes():
    """See tests/rank_jobs.py."""
    from rank_jobs import RankProcesses

    processes = RankProcesses()
    yield processes
    processes.close()


@pytest.fixture(scope="session")
def forked_python():
    """See tests/forked.py; the folder's name is short, as a socket's has to be."""
    from forked import forked_python

    with TemporaryDirectory(dir="/tmp") as folder, forked_python(Path(folder)) as program:
        yield program


@pytest.fixture
def shared_data() -> Path:
    """Folder of real data sets that a developer may keep beside the checkout; absent elsewhere."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs the shared data folder {SHARED_DATA}, which is not here")
    return SHARED_DATA


@pytest.fixture(autouse=True)
def seeded():
    """The same generator state for every test; what compute_init switched on is switched off."""
    import torch

    torch.manual_seed(0)
    yield
    torch.set_deterministic_debug_mode("default")


def make_model(**overrides):
    """A GPT small enough that a step takes milliseconds; always the same weights."""
    from nanochat.gpt import GPT, GPTConfig

    shape = {"vocab_size": 128, "head_dim": 16, "sequence_len": 32, "n_embd": 32, "n_head": 2}
    shape |= {"n_kv_head": 2, **overrides}
    return GPT(GPTConfig.from_depth(2, **shape))


def make_batch(B: int = 4, T: int = 32, V: int = 128):
    """A Batch of random ids, always the same, each predicting the next."""
    import torch

    from nanochat.dataloader import Batch

    ids = torch.randint(0, V, (B, T + 1), generator=torch.Generator().manual_seed(B * T))
    return Batch(ids[:, :-1], ids[:, 1:].clone())


@pytest.fixture
def tiny_model():
    return make_model


@pytest.fixture
def tiny_batch():
    return make_batch
