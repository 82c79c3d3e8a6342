"""An export that several files test, made once, and exports that are not proved."""

from contextlib import contextmanager
from functools import cache

import pytest
from tiny_checkpoint import save

from nanochat.publishing import parity
from nanochat.publishing.export import export


@cache
def export_once(mktemp, share_compiled):
    """(base folder, checkpoint, its export in bfloat16)."""
    folder = mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(share_compiled(folder / "base")))
        run = {"config": {"depth": 2, "data": "/home/me/texts"}}
        run["parent"] = "/home/me/.cache/nanochat/mid_checkpoints/tiny/step_000009"
        checkpoint = save(stage="sft", run=run)
        export(checkpoint, folder / "hf_model")
    return folder / "base", checkpoint, folder / "hf_model"


@contextmanager
def without_proof():
    """Exports without the fresh process, which takes seconds and has tests of its own."""

    def passed(folder, checkpoint, dtype):
        return {"passed": True, "dtype": dtype, "checks": {}, "differences": {}}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "prove", passed)
        yield
