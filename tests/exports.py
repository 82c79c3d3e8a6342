"""An export that several files test, made once; exports that are proved faster, or not at all."""

import fcntl
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from forked import CONTEXT
from tiny_checkpoint import save

from nanochat.publishing import parity
from nanochat.publishing.export import export


def export_once(tmp_path_factory, share_compiled):
    """(base folder, checkpoint, its export in bfloat16), which all workers read."""
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent
    folder = place / "export"
    with open(place / "export.lock", "w") as lock, pytest.MonkeyPatch.context() as patch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            patch.setenv("NANOCHAT_BASE_DIR", str(share_compiled(folder / "base")))
            run = {"config": {"depth": 2, "data": "/home/me/texts"}}
            run["parent"] = "/home/me/.cache/nanochat/mid_checkpoints/tiny/step_000009"
            with proved_forked():
                export(save(stage="sft", run=run), folder / "hf_model")
    (checkpoint,) = folder.glob("base/sft_checkpoints/tiny/step_*")
    return folder / "base", checkpoint, folder / "hf_model"


@contextmanager
def proved_here():
    """Exports whose proof runs in this process: a fresh one imports transformers for seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))
        yield


@contextmanager
def proved_forked():
    """Exports whose proof runs in another process, which begins with torch imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "get_context", lambda kind: CONTEXT)
        yield


@contextmanager
def without_proof():
    """Exports without the proof, which has tests of its own."""

    def passed(folder, checkpoint, dtype):
        return {"passed": True, "dtype": dtype, "checks": {}, "differences": {}}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "prove", passed)
        yield
