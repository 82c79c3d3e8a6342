"""The second copy: a folder, and a hub served on loopback."""

import shutil

import pytest
from hub_stub import serve

from nanochat.checkpoint.index import find_checkpoint, step_dir
from nanochat.checkpoint.manifest import check, write_manifest
from nanochat.common import CheckpointError
from nanochat.publishing import mirror as mirror_module
from nanochat.publishing.mirror import Mirror


@pytest.fixture
def no_retries(monkeypatch):
    monkeypatch.setattr(mirror_module, "WAITS", ())


def make(step, text="weights"):
    path = step_dir("base", "d4", step)
    (path / "optimizer").mkdir(parents=True)
    (path / "weights").write_text(text)
    (path / "optimizer" / "adamw").write_text("moments")
    write_manifest(path, {"stage": "base", "tag": "d4", "step": step})
    return path


def test_every_push_is_copied_and_the_mirror_serves_as_a_base_folder(tmp_path, monkeypatch):
    mirror = Mirror(str(tmp_path / "mirror"))
    for step in (1, 2):
        mirror.push(make(step))
    mirror.close()
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "mirror"))
    assert find_checkpoint("base") == step_dir("base", "d4", 2)
    assert find_checkpoint("base", step=1) == step_dir("base", "d4", 1)
    names = [p.name for p in (tmp_path / "mirror").rglob("*") if p.is_file()]
    assert sorted(names) == ["adamw", "adamw"] + ["manifest.json"] * 2 + ["weights", "weights"]


def test_a_copy_that_does_not_verify_is_a_failure_at_the_end(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(mirror_module, "WAITS", (0,))
    path = make(1)
    (path / "weights").write_text("WEIGHTS")
    mirror = Mirror(str(tmp_path / "mirror"))
    mirror.push(path)
    with pytest.raises(CheckpointError, match="could not be mirrored.*SHA-256"):
        mirror.close()
    assert capsys.readouterr().out.count("trying again") == 1
    assert not list((tmp_path / "mirror").rglob("*weights"))


def test_a_failure_is_forgotten_once_a_later_push_stands(tmp_path, no_retries):
    blocked = tmp_path / "mirror"
    blocked.write_text("a file where the folder should be")
    mirror = Mirror(str(blocked))
    mirror.push(make(1))
    assert mirror.newest.exception(30)
    blocked.unlink()
    mirror.push(make(2))
    mirror.close()
    check(blocked / "base_checkpoints" / "d4" / "step_000002")


def test_retried_until_the_place_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(mirror_module, "WAITS", (0.01,) * 1000)
    place = tmp_path / "mirror"
    place.write_text("not yet a folder")
    mirror = Mirror(str(place))
    mirror.push(make(1))
    place.unlink()
    mirror.close()
    check(place / "base_checkpoints" / "d4" / "step_000001")


def test_one_that_was_pruned_meanwhile_is_said_and_is_no_failure(tmp_path, capsys, no_retries):
    path = make(1)
    shutil.rmtree(path)
    mirror = Mirror(str(tmp_path / "mirror"))
    mirror.push(path)
    mirror.close()
    assert "was pruned before it was copied" in capsys.readouterr().out


def test_places_that_cannot_be(base_dir):
    with pytest.raises(CheckpointError, match="is the base folder itself"):
        Mirror(str(base_dir))
    with pytest.raises(CheckpointError, match="expected hf://user/repo"):
        Mirror("hf://user")


@pytest.fixture
def hub(monkeypatch):
    with serve(monkeypatch) as server:
        yield server


@pytest.mark.parametrize("large", [10**9, 1], ids=["small files", "large file storage"])
def test_upload_to_a_hub(hub, large, no_retries):
    hub.large = large
    path = make(3)
    mirror = Mirror("hf://me/run")
    mirror.push(path)
    mirror.close()
    place = "base_checkpoints/d4/step_000003"
    names = ("weights", "optimizer/adamw", "manifest.json")
    assert hub.files == {f"{place}/{name}": (path / name).read_bytes() for name in names}
    assert hub.created[0]["name"] == "run"
    assert hub.created[0].get("private") or hub.created[0].get("visibility") == "private"


def test_an_upload_that_arrives_otherwise_is_a_failure(hub, no_retries):
    hub.spoil = lambda content: content.replace(b"weights", b"WEIGHTS")
    mirror = Mirror("hf://me/run")
    mirror.push(make(3))
    with pytest.raises(CheckpointError, match="step_000003/.* arrived as"):
        mirror.close()
