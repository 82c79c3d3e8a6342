"""Saving when something goes wrong: killed at any moment, a full disk, a rank that fails.

Nothing here is simulated: processes are killed, and limits are set by the operating system.
"""

import itertools
import os
import random
import resource
import signal
import sys
import time

import pytest
import torch
import torch.distributed as dist
from forked import CONTEXT, start
from tiny_checkpoint import save, tiny_model, tiny_tokenizer

from nanochat.checkpoint import manifest
from nanochat.checkpoint.index import find_checkpoint, step_dir
from nanochat.checkpoint.rng import restore_rng
from nanochat.checkpoint.writing import write_folder
from nanochat.checkpoint_manager import (
    folder_texts,
    load_model,
    load_training_state,
)
from nanochat.common import CheckpointError

CPU = torch.device("cpu")


def save_until_killed(folder, completed):
    """Saves weights filled with 1, 2, 3, ... as steps 1, 2, 3, ... and counts in `completed`."""
    os.environ["NANOCHAT_BASE_DIR"] = str(folder)
    model, tokenizer = tiny_model(n_layer=1), tiny_tokenizer()
    while True:
        step = completed.value + 1
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(step)
        save(step, model=model, tokenizer=tokenizer)
        completed.value = step


@pytest.mark.slow
def test_killed_at_random_moments_the_last_complete_one_is_there(base_dir):
    rng = random.Random(1)
    completed = CONTEXT.Value("i", 0, lock=False)
    for _ in range(4):
        already = completed.value
        process = start(save_until_killed, base_dir, completed)
        deadline = time.monotonic() + 60
        while completed.value == already:
            assert process.is_alive() and time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        model, _, meta = load_model("base", CPU, phase="eval")
        assert meta["step"] in (completed.value, completed.value + 1)  # +1: not yet counted
        assert all((p == meta["step"]).all() for p in model.parameters())


def replace_and_die(folder, value, point):
    """Saves step 1 anew; dies just before the `point`-th time that a name in a folder changes."""
    os.environ["NANOCHAT_BASE_DIR"] = str(folder)
    model, tokenizer = tiny_model(n_layer=1), tiny_tokenizer()
    changes = {"os.rename", "os.remove", "os.rmdir", "os.mkdir"}
    points = itertools.count()

    def die_at_point(event, arguments):
        if event in changes and next(points) == point:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(die_at_point)
    save(1, model=model, tokenizer=tokenizer, run={"value": value})


@pytest.mark.slow
def test_killed_at_any_point_of_replacing_a_checkpoint_one_of_the_two_is_there(base_dir):
    save(1, model=tiny_model(n_layer=1), run={"value": 0})
    values = [0]
    for point in range(200):
        process = start(replace_and_die, base_dir, point + 1, point)
        process.join()
        values.append(load_model("base", CPU, phase="eval")[2]["value"])
        assert values[-1] in (values[-2], point + 1)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert 20 < point < 199 and values[-1] == point + 1
    assert [p.name for p in find_checkpoint("base").parent.iterdir()] == ["step_000001"]


def publish_and_die(folder, text, point):
    """Replaces the folder as an export or a mirror does; dies at the `point`-th change of names."""
    changes, points = {"os.rename", "os.remove", "os.rmdir", "os.mkdir"}, itertools.count()

    def die_at_point(event, arguments):
        if event in changes and next(points) == point:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(die_at_point)
    manifest.sweep(folder.parent, folder.name)
    temporary = manifest.temporary_beside(folder)
    temporary.mkdir()
    for name in ("a", "b"):
        (temporary / name).write_text(text)
    manifest.write_manifest(temporary, {"text": text})
    manifest.publish(temporary, folder)


@pytest.mark.slow
def test_killed_at_any_point_of_replacing_a_folder_the_next_sweep_leaves_one_of_the_two(tmp_path):
    folder, before, exitcodes = tmp_path / "hf", "-1", []
    start(publish_and_die, folder, before, -1).join()
    for point in range(99):
        process = start(publish_and_die, folder, str(point), point)
        process.join()
        exitcodes.append(process.exitcode)
        manifest.sweep(tmp_path, folder.name)
        manifest.check(folder)
        text = manifest.read_manifest(folder)["text"]
        assert text in (before, str(point)) and (folder / "a").read_text() == text
        assert [p.name for p in tmp_path.iterdir()] == ["hf"]
        before = text
        if process.exitcode == 0:
            break
    assert len(exitcodes) > 7 and set(exitcodes[:-1]) == {-signal.SIGKILL}
    assert before == str(point)


def write_at_once(folder, value, barrier, messages):
    """Writes step 1 where none is to be replaced; waits for the other before the last rename."""
    os.environ["NANOCHAT_BASE_DIR"] = str(folder)
    model, tokenizer = tiny_model(n_layer=1), tiny_tokenizer()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    place = {"stage": "base", "tag": "tiny", "step": 1}
    final = step_dir(**place)
    texts = folder_texts(model.config, tokenizer, {}, {}, place, CPU)
    tensors = {"model.safetensors": model.state_dict()}

    def wait(event, arguments):
        if event == "os.rename" and str(arguments[1]) == str(final):
            barrier.wait(60)

    sys.addaudithook(wait)
    try:
        write_folder(final, texts, tensors, tokenizer.fingerprint, place, replace=False)
        messages.put((value, ""))
    except Exception as error:
        messages.put((value, f"{type(error).__name__}: {error}"))


@pytest.mark.slow
def test_of_two_that_write_one_place_at_once_one_wins_and_the_other_is_told(base_dir):
    barrier, messages = CONTEXT.Barrier(2), CONTEXT.Queue()
    processes = [start(write_at_once, base_dir, i, barrier, messages) for i in (1, 2)]
    said = dict(messages.get(timeout=90) for _ in processes)
    for process in processes:
        process.join()
    winner, loser = sorted(said, key=said.get)
    assert said[winner] == "" and "CheckpointError" in said[loser]
    assert "step_000001 exists, and it is not replaced" in said[loser]
    model, _, _ = load_model("base", CPU, phase="eval")
    assert all((p == winner).all() for p in model.parameters())
    assert [p.name for p in find_checkpoint("base").parent.iterdir()] == ["step_000001"]


def save_with_limit(folder, limit, messages):
    os.environ["NANOCHAT_BASE_DIR"] = str(folder)
    model, tokenizer = tiny_model(), tiny_tokenizer()
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        save(2, model=model, tokenizer=tokenizer)
    except CheckpointError as error:
        messages.put(str(error))


@pytest.mark.parametrize("limit", [100_000, 0], ids=["weights do not fit", "nothing fits"])
@pytest.mark.slow
def test_full_disk_leaves_the_earlier_checkpoint_and_nothing_else(base_dir, limit):
    good = save(1)
    size = sum(p.numel() * 4 for p in tiny_model().parameters())
    messages = CONTEXT.Queue()
    process = start(save_with_limit, base_dir, limit, messages)
    message = messages.get(timeout=60)
    process.join()
    assert "step_000002 could not be written" in message and "MB were free in" in message
    assert f"needs {size / 1e6:,.1f} MB" in message
    assert f"newest good checkpoint of this run is {good}" in message
    assert find_checkpoint("base") == good
    assert [p.name for p in good.parent.iterdir()] == [good.name]


def save_as_rank(rank, folder, messages):
    os.environ["NANOCHAT_BASE_DIR"] = str(folder)
    dist.init_process_group("gloo", f"file://{folder}/ranks", rank=rank, world_size=2)
    torch.manual_seed(rank)
    model, tokenizer = tiny_model(), tiny_tokenizer()
    save(1, model=model, tokenizer=tokenizer)
    assert find_checkpoint("base").name == "step_000001"
    draw = torch.rand(()).item()
    restore_rng(load_training_state(find_checkpoint("base"))[1])
    assert torch.rand(()).item() == draw
    if rank == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        save(2, model=model, tokenizer=tokenizer)
    except CheckpointError as error:
        messages.put((rank, draw, str(error)))
    dist.destroy_process_group()


@pytest.mark.slow
def test_of_two_ranks_one_writes_and_both_learn_of_a_failure(base_dir):
    messages = CONTEXT.Queue()
    processes = [start(save_as_rank, rank, base_dir, messages) for rank in (0, 1)]
    (_, draw0, error0), (_, draw1, error1) = sorted(messages.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    assert draw0 != draw1  # each rank's own generator came back
    assert "could not be written" in error0 and error1 == error0
    state, generators, _ = load_training_state(find_checkpoint("base"))
    assert len(generators["cpu"]) == state["environment"]["ranks"] == 2
    torch.manual_seed(5)
    restore_rng(generators)
    assert torch.rand(()).item() == draw0
