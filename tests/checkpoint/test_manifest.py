"""Folders that are whole or not there."""

import hashlib
import json
import os
import subprocess
import sys

import pytest

from nanochat.checkpoint.manifest import (
    MANIFEST,
    check,
    publish,
    read_manifest,
    remove,
    sweep,
    temporary_beside,
    vacated_place,
    write_manifest,
)
from nanochat.common import CheckpointError


def make(folder, text="abc"):
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text(text)
    (folder / "sub" / "b.txt").write_text("")
    return write_manifest(folder, {"step": 7})


def test_manifest_holds_size_and_sha256_of_every_file(tmp_path):
    made = make(tmp_path / "x")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    abc = hashlib.sha256(b"abc").hexdigest()
    assert made["files"] == {
        "a.txt": {"bytes": 3, "sha256": abc},
        "sub/b.txt": {"bytes": 0, "sha256": empty},
    }
    assert read_manifest(tmp_path / "x") == made and made["step"] == 7
    check(tmp_path / "x")


@pytest.mark.parametrize(
    ("name", "found", "expected"),
    [("a.txt", "4 bytes", "expected 3"), ("a.txt", "SHA-256", "ba7816bf8f01"), (None, "", "")],
)
def test_check_says_what_was_found_and_expected(tmp_path, name, found, expected):
    make(tmp_path / "x")
    path = tmp_path / "x" / (name or "sub/b.txt")
    path.write_text({"4 bytes": "abcd", "SHA-256": "abd", "": ""}[found])
    if not name:
        path.unlink()
        found, expected = "missing", "0 bytes"
    with pytest.raises(CheckpointError) as error:
        check(tmp_path / "x")
    assert str(path) in str(error.value)
    assert found in str(error.value) and expected in str(error.value)


def test_every_flipped_bit_and_every_truncation_of_a_manifest_is_noticed(tmp_path):
    make(tmp_path / "x")
    path = tmp_path / "x" / MANIFEST
    good = path.read_bytes()
    for i in range(len(good)):
        path.write_bytes(good[:i] + bytes([good[i] ^ 1 << i % 8]) + good[i + 1 :])
        with pytest.raises(CheckpointError):
            read_manifest(tmp_path / "x")
        path.write_bytes(good[:i])
        with pytest.raises(CheckpointError):
            read_manifest(tmp_path / "x")
    path.write_bytes(good)
    read_manifest(tmp_path / "x")


@pytest.mark.parametrize("text", ["[]", "3", "{}", json.dumps({"checksum": 3})])
def test_a_manifest_of_something_else_is_refused(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
        read_manifest(tmp_path)


def test_publish_replaces_a_folder_and_leaves_nothing_else(tmp_path):
    final = tmp_path / "step_000001"
    make(final, "old")
    make(temporary_beside(final), "new")
    publish(temporary_beside(final), final)
    assert (final / "a.txt").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["step_000001"]


def dead_pid():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_stands_there_is_not_replaced_when_that_is_asked(tmp_path):
    final = tmp_path / "step_000001"
    make(final, "old")
    make(temporary_beside(final), "new")
    with pytest.raises(CheckpointError, match="step_000001 exists, and it is not replaced"):
        publish(temporary_beside(final), final, replace=False)
    assert (final / "a.txt").read_text() == "old"
    publish(temporary_beside(final), tmp_path / "step_000002", replace=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000001", "step_000002"]


def test_sweep_puts_back_a_folder_whose_replacement_never_came(tmp_path, capsys):
    pid = dead_pid()
    moved, unfinished = (tmp_path / f".step_000001.{kind}-{pid}" for kind in ("old", "tmp"))
    make(moved)
    unfinished.mkdir()
    assert vacated_place(moved) == tmp_path / "step_000001"
    sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step_000001"]
    check(tmp_path / "step_000001")
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_sweep_deletes_a_folder_whose_replacement_came(tmp_path):
    moved = tmp_path / f".step_000001.old-{dead_pid()}"
    make(moved, "old")
    make(tmp_path / "step_000001", "new")
    assert vacated_place(moved) is None
    sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step_000001"]
    assert (tmp_path / "step_000001" / "a.txt").read_text() == "new"


def test_sweep_keeps_a_folder_whose_place_something_else_has_taken(tmp_path, capsys):
    moved = tmp_path / f".hf.old-{dead_pid()}"
    make(moved)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "notes.txt").write_text("")
    sweep(tmp_path)
    check(moved)
    assert "not cleared up" in capsys.readouterr().out
    (tmp_path / "hf" / "notes.txt").unlink()  # an empty folder gives way
    sweep(tmp_path)
    check(tmp_path / "hf")


def test_a_folder_that_could_not_be_replaced_is_back_at_once(tmp_path):
    final = tmp_path / "step_000001"
    make(final)
    with pytest.raises(FileNotFoundError):
        publish(temporary_beside(final), final)
    check(final)


def test_what_a_living_process_writes_is_left_alone_until_it_is_gone(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    names = [f".step_00000{i}.{kind}-{process.pid}" for i, kind in ((1, "old"), (2, "tmp"))]
    for name in (*names, f".step_000003.tmp-{os.getpid()}"):
        make(tmp_path / name)
    sweep(tmp_path)
    sweep(tmp_path, "step_000002")
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    process.communicate(b"\n")
    sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step_000001"]


def test_sweep_beside_a_folder_looks_at_its_own_names_alone(tmp_path, capsys):
    pid, final = dead_pid(), tmp_path / "hf[1]"
    others = [f".hf1.tmp-{pid}", f".hf[1].tmp-{pid}x", f"hf[1].tmp-{pid}", ".hf[1].old-mine"]
    for name in (*others, f".hf[1].tmp-{pid}", f".hf[1].old-{pid}"):
        make(tmp_path / name, name)
    sweep(tmp_path, final.name)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*others, "hf[1]"])
    assert (final / "a.txt").read_text() == f".hf[1].old-{pid}"
    assert len(capsys.readouterr().out.splitlines()) == 2
    make(tmp_path / f".hf[1].old-{pid}")
    sweep(tmp_path, final.name)  # the old one's place is taken by now
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*others, "hf[1]"])
    sweep(tmp_path / "nowhere", "x")


def test_remove_leaves_nothing(tmp_path):
    make(tmp_path / "x")
    remove(tmp_path / "x")
    assert not list(tmp_path.iterdir())
