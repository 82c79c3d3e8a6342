"""A run's folder: one writer, nothing moved too early, nothing lost to what comes after a save."""

import multiprocessing
import os
import signal
import threading
import time

import pytest

from nanochat.checkpoint.index import run_dir
from nanochat.common import ConfigError
from nanochat.files import write_atomic
from nanochat.training import log, resume
from nanochat.training.config import StageConfig
from nanochat.training.resume import find_resume, lock_run, move_aside

FORK = multiprocessing.get_context("fork")


def hold(stage: str, tag: str, ready, leave: bool = False) -> None:
    """Another process that trains; leave: its child lives on when it is killed."""
    file = lock_run(stage, tag)
    if leave and os.fork() == 0:
        time.sleep(5)
        os._exit(0)
    ready.set()
    time.sleep(60)
    file.close()


@pytest.fixture
def holder():
    """Starts processes that hold a run, and ends them."""
    started = []

    def start(tag: str, **settings) -> multiprocessing.Process:
        ready = FORK.Event()
        started.append(FORK.Process(target=hold, args=("base", tag, ready), kwargs=settings))
        started[-1].start()
        assert ready.wait(60)
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.join()


def test_a_second_run_of_one_tag_is_refused_while_the_first_lives(holder):
    first = holder("d4")
    with pytest.raises(
        ConfigError, match=rf"d4 is being written by process {first.pid} on .* since"
    ):
        lock_run("base", "d4")
    lock_run("base", "d5").close()
    lock_run("mid", "d4").close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_of_a_killed_run_is_free(holder, number):
    first = holder("d4")
    os.kill(first.pid, number)
    first.join()
    file = lock_run("base", "d4")
    record = run_dir("base", "d4").with_name(".d4.lock").read_text()
    assert record.startswith(f"process {os.getpid()} on ")
    file.close()


def test_a_child_of_a_killed_run_does_not_hold_its_lock(holder):
    first = holder("d4", leave=True)
    first.kill()
    first.join()
    lock_run("base", "d4").close()


def test_a_lock_that_was_given_back_is_free(holder):
    lock_run("base", "d4").close()
    holder("d4")


def test_a_run_of_another_node_is_watched(monkeypatch, capsys):
    """Where locks are a node's own: the file says who wrote last, the metrics whether it lives."""
    monkeypatch.setattr(resume, "WATCHED", 0.5)
    folder = run_dir("base", "d4")
    write_atomic(folder.with_name(".d4.lock"), "process 7 on another-node since yesterday")
    lock_run("base", "d4").close()  # it has written no metrics

    write_atomic(folder.with_name(".d4.lock"), "process 7 on another-node since yesterday")
    write_atomic(folder / log.METRICS, "{}\n")
    lock_run("base", "d4").close()  # nor does it now
    assert "another node wrote" in capsys.readouterr().out

    write_atomic(folder.with_name(".d4.lock"), "process 7 on another-node since yesterday")
    writer = threading.Timer(0.1, lambda: write_atomic(folder / log.METRICS, "{}\n{}\n"))
    writer.start()
    with pytest.raises(ConfigError, match="is being written by process 7 on another-node"):
        lock_run("base", "d4")
    writer.join()


def test_a_file_system_without_locks_is_said(monkeypatch, capsys):
    def refuse(*args):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.lockf", refuse)
    lock_run("base", "d4").close()
    assert "no locks here" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_named(base_dir):
    (base_dir / "base_checkpoints").touch()
    with pytest.raises(ConfigError, match="the runs of stage base cannot be written"):
        lock_run("base", "d4")


def test_a_full_disk_is_named(base_dir):
    folder = run_dir("base", "d4")
    folder.parent.mkdir(parents=True)
    folder.with_name(".d4.lock").symlink_to("/dev/full")
    with pytest.raises(ConfigError, match="the runs of stage base cannot be written"):
        lock_run("base", "d4")


@pytest.mark.parametrize("tag", ["../d4", "a/b", "", ".hidden", "a b", "~", "-x", "a\nb"])
def test_a_tag_that_is_no_folder_name(tag):
    with pytest.raises(ConfigError, match="is no folder name"):
        lock_run("base", tag)


def test_fresh_moves_nothing_until_it_is_told_to(capsys):
    folder = run_dir("base", "d4")
    write_atomic(folder / "notes", "earlier")
    assert find_resume("base", "d4", StageConfig(fresh=True)) is None
    assert (folder / "notes").exists()
    move_aside(folder)
    (aside,) = folder.parent.glob("d4.old-*")
    assert not folder.exists() and (aside / "notes").read_text() == "earlier"
    assert f"the earlier run is now {aside}" in capsys.readouterr().out
    move_aside(folder)  # there is none any more


@pytest.mark.slow
def test_a_line_of_metrics_that_cannot_be_written_ends_nothing(tmp_path, capsys):
    (tmp_path / log.METRICS).symlink_to("/dev/full")
    log.append_metrics(tmp_path, {"step": 1})
    log.append_metrics(tmp_path / log.METRICS / "below", {"step": 1})
    assert capsys.readouterr().out.count("a line was not written") == 2
