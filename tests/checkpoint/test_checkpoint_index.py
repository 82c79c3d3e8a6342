"""Which checkpoints there are. What a folder holds does not matter here: one small file each."""

import os

import pytest

from nanochat.checkpoint.index import (
    Checkpoint,
    available_checkpoints,
    checkpoint_dir,
    checkpoint_of,
    find_checkpoint,
    prune,
    step_dir,
    verify,
)
from nanochat.checkpoint.manifest import write_manifest
from nanochat.common import CheckpointError, ConfigError


def make(stage, tag, step):
    path = step_dir(stage, tag, step)
    path.mkdir(parents=True)
    (path / "weights").write_text(f"{stage} {tag} {step}")
    write_manifest(path, {"stage": stage, "tag": tag, "step": step})
    return path


def damage(path):
    (path / "weights").write_text("damaged")


def test_places(base_dir):
    assert step_dir("base", "d4", 123) == base_dir / "base_checkpoints" / "d4" / "step_000123"
    with pytest.raises(CheckpointError, match="base, mid, sft, rl"):
        checkpoint_dir("pretrain")
    for tag in ("", "a/b", "..", ".hidden"):
        with pytest.raises(ConfigError, match="model tag"):
            step_dir("base", tag, 1)


def test_newest_is_by_the_time_inside_the_manifest():
    late, early = make("base", "d4", 20), make("base", "d6", 10)
    os.utime(late, (2e9, 2e9))  # the folder's own time says the contrary
    assert find_checkpoint("base") == early
    assert find_checkpoint("base", tag="d4") == late
    assert find_checkpoint("base", step=20) == late
    assert [type(f) for f in available_checkpoints()] == [Checkpoint, Checkpoint]
    assert [(f.stage, f.tag, f.step, f.path) for f in available_checkpoints("base")] == [
        ("base", "d6", 10, early),
        ("base", "d4", 20, late),
    ]
    assert available_checkpoints("sft") == []


def test_broken_ones_are_passed_over_with_a_line_each(capsys):
    good, changed, unfinished = (make("mid", "d4", step) for step in (1, 2, 3))
    damage(changed)
    (unfinished / "manifest.json").unlink()
    assert find_checkpoint("mid") == good
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(line.startswith("skipped: ") for line in lines)
    assert str(unfinished) in lines[0] and str(changed) in lines[1]


def test_none_found_lists_those_there_are_and_the_command(base_dir):
    make("base", "d4", 20)
    make("base", "d4", 5)
    with pytest.raises(CheckpointError) as error:
        find_checkpoint("sft", tag="d4", step=7)
    assert str(error.value) == (
        f"no complete checkpoint of sft, tag d4, step 7. Under {base_dir} there are: base d4 at "
        "step 5, 20. `python -m scripts.chat_sft` makes one of stage sft."
    )
    with pytest.raises(CheckpointError, match="there are: base d4"):
        find_checkpoint("base", step=0)


def test_verify_names_the_newest_good_one():
    good, broken = make("base", "d4", 1), make("base", "d4", 2)
    damage(broken)
    with pytest.raises(CheckpointError) as error:
        verify(broken)
    assert str(broken / "weights") in str(error.value) and str(good) in str(error.value)
    damage(good)
    with pytest.raises(CheckpointError, match="No good checkpoint of this run is left"):
        verify(good)


def test_crash_between_the_renames_of_a_replacement_leaves_the_old_one_to_be_found():
    path = make("base", "d4", 1)
    moved = path.with_name(".step_000001.old-99")
    path.rename(moved)
    path.with_name(".step_000001.tmp-99").mkdir()
    assert find_checkpoint("base") == moved


def steps():
    return sorted(f.step for f in available_checkpoints("base", "d4"))


def test_prune_keeps_the_last_and_every_nth():
    for step in (10, 20, 30, 40, 50):
        make("base", "d4", step)
    other = make("base", "d6", 1)
    prune("base", "d4", keep_last=2, keep_every=20)
    assert steps() == [20, 40, 50] and other.exists()
    prune("base", "d4", keep_last=1, keep_every=0)
    assert steps() == [50]


def test_prune_spares_the_newest_whose_files_verify():
    for step in (1, 2, 3):
        path = make("base", "d4", step)
        if step > 2:
            damage(path)
    prune("base", "d4", keep_last=1, keep_every=0)
    assert steps() == [2, 3]
    assert find_checkpoint("base") == step_dir("base", "d4", 2)


def test_a_folder_has_no_other_step():
    folder = make("sft", "d2", 5)
    assert checkpoint_of(folder) == folder
    with pytest.raises(ConfigError, match=r"is a folder: a model tag \(None\) and a step \(99\)"):
        checkpoint_of(folder, step=99)
