"""--track: the metrics of a run in other people's trackers, read back by their own readers."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from nanochat.checkpoint.index import run_dir
from nanochat.common import ConfigError
from nanochat.publishing.track import Tracker, numbers
from nanochat.training.config import StageConfig
from nanochat.training.log import append_metrics


def begun(tag: str = "tiny"):
    """A run whose metrics have a line from before this start."""
    folder = run_dir("base", tag)
    append_metrics(folder, {"stage": "base", "step": 1, "loss": 9.0, "time": 1.0})
    return SimpleNamespace(run_folder=folder, tag=tag, name="base", config=StageConfig())


def run(tracker: Tracker, stage) -> None:
    tracker.update()
    append_metrics(stage.run_folder, {"stage": "base", "step": 2, "session": {"ranks": 1}})
    for step in (2, 3):
        append_metrics(stage.run_folder, {"stage": "base", "step": step, "loss": 1.0 / step})
    tracker.update()
    append_metrics(stage.run_folder, {"stage": "base", "step": 3, "val_bpb": 1.25})
    tracker.close()


def test_figures_are_named_after_their_stage():
    record = {"stage": "mid", "step": 3, "time": 5.0, "loss": 2, "mfu": float("nan"), "ok": True}
    assert numbers(record) == {"mid/loss": 2}


def test_tensorboard_reads_what_the_run_wrote():
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    stage = begun()
    run(Tracker("tensorboard", stage), stage)
    events = EventAccumulator(str(stage.run_folder / "tensorboard"))
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("base/loss")]
    assert losses == [(2, 0.5), (3, pytest.approx(1 / 3))]
    assert [event.value for event in events.Scalars("base/val_bpb")] == [1.25]


def test_wandb_writes_what_the_run_wrote_without_a_network(monkeypatch, tmp_path):
    wandb = pytest.importorskip("wandb", reason="needs wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    stage = begun()
    tracker = Tracker("wandb", stage)
    tracker.update()
    assert wandb.run.name == "tiny-base" and wandb.run.group == "tiny"
    run(tracker, stage)
    [file] = tmp_path.rglob("*.wandb")
    assert b"val_bpb" in file.read_bytes() and tracker.kind == "wandb"


def test_trackio_reads_what_the_run_wrote(tmp_path):
    """In a process of its own, for trackio looks for its folder when it is imported."""
    pytest.importorskip("trackio", reason="needs trackio")
    stage = begun()
    work = f"""
import sys
from pathlib import Path
from types import SimpleNamespace
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_track import StageConfig, Tracker, run
from trackio.sqlite_storage import SQLiteStorage
stage = SimpleNamespace(run_folder=Path({str(stage.run_folder)!r}), tag="tiny", name="base")
stage.config = StageConfig()
run(Tracker("trackio", stage), stage)
rows = SQLiteStorage.get_logs("nanochat", "tiny-base")
print("ROWS", [(row["step"], row.get("base/loss"), row.get("base/val_bpb")) for row in rows])
"""
    env = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio")}
    found = subprocess.run([sys.executable, "-c", work], env=env, capture_output=True, text=True)
    rows = [(2, 0.5, None), (3, 1 / 3, None), (3, None, 1.25)]
    assert f"ROWS {rows}" in found.stdout, found.stdout + found.stderr


def test_a_tracker_that_fails_ends_no_training(capsys):
    """A folder where the metrics should be, and no tracker that could be opened."""
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    stage = begun()
    tracker = Tracker("tensorboard", stage)
    (stage.run_folder / "metrics.jsonl").unlink()
    tracker.update()
    tracker.close()
    assert "--track tensorboard: stopped by FileNotFoundError" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["wandb", "trackio", "tensorboard"])
def test_a_package_that_is_not_there_is_named_at_once(kind):
    if importlib.util.find_spec(kind):
        pytest.skip(f"{kind} is installed")
    with pytest.raises(ConfigError, match=f"pip install {kind}"):
        Tracker(kind, begun())
