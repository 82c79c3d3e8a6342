"""common.py: atomic writes, dtype and device choice, speed measurement, progress lines."""

import itertools
import os
import stat

import pytest
import torch

from nanochat import common
from nanochat.common import (
    CheckpointError,
    ConfigError,
    DataError,
    NanochatError,
    choose_dtype,
    compute_init,
    pick_device_type,
    print0,
    progress,
    rank_and_world,
    require_package,
)
from nanochat.files import base_dir, read_json, write_atomic

CPU = torch.device("cpu")


def test_errors_that_users_cause_have_one_parent():
    assert all(issubclass(e, NanochatError) for e in (ConfigError, DataError, CheckpointError))


def test_base_dir_is_made_where_the_variable_says(monkeypatch, tmp_path):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "a" / "b"))
    assert base_dir() == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").is_dir()


def test_base_dir_defaults_to_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("NANOCHAT_BASE_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert base_dir() == tmp_path / ".cache" / "nanochat"


@pytest.mark.parametrize("data", ["Größe\n", b"\x00\xff", ""])
def test_write_atomic_writes_exactly_that(data, tmp_path):
    path = tmp_path / "new" / "file"
    write_atomic(path, "an older and longer text")
    write_atomic(path, data)
    assert path.read_bytes() == (data.encode() if isinstance(data, str) else data)
    assert os.listdir(path.parent) == ["file"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(None, "could not be read: No such file"), (b"{", "is not JSON"), (b"\xff", "is not JSON"),
     (b"[" * 100_000, "is not JSON")],
)  # fmt: skip
def test_read_json_names_the_file_the_reason_and_the_remedy(content, complaint, tmp_path):
    path = tmp_path / "x.json"
    write_atomic(path, '{"ä": [1]}')
    assert read_json(path) == {"ä": [1]}
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"x\.json {complaint}.*\. Mend it"):
        read_json(path, "Mend it", CheckpointError)
    with pytest.raises(DataError):
        read_json(path)


def test_write_atomic_that_fails_leaves_what_was_there(tmp_path):
    target = tmp_path / "taken"
    (target / "inside").mkdir(
        parents=True
    )  # a folder that is not empty cannot be replaced by a file
    with pytest.raises(OSError):
        write_atomic(target, "text")
    assert os.listdir(tmp_path) == ["taken"]
    assert os.listdir(target) == ["inside"]


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_nanochat_dtype_overrides(name, monkeypatch):
    monkeypatch.setenv("NANOCHAT_DTYPE", name)
    dtype, reason = choose_dtype(CPU)
    assert dtype == getattr(torch, name)
    assert "NANOCHAT_DTYPE" in reason


def test_unknown_dtype_names_the_choices(monkeypatch):
    monkeypatch.setenv("NANOCHAT_DTYPE", "fp8")
    with pytest.raises(ConfigError, match=r"'fp8'.*float32, bfloat16, float16"):
        choose_dtype(CPU)


def test_cpu_dtype_follows_the_processor(monkeypatch):
    monkeypatch.delenv("NANOCHAT_DTYPE", raising=False)
    fast = common.cpu_has_fast_bfloat16()
    assert choose_dtype(CPU)[0] == (torch.bfloat16 if fast else torch.float32)
    assert choose_dtype(torch.device("mps"))[0] == torch.float32


def test_what_is_compiled_for_a_held_processor_is_kept_apart(monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "chosen")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    compute_init("cpu")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "chosen"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    compute_init("cpu")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"].endswith("-avx2")


def test_device_type_is_checked():
    assert pick_device_type("cpu") == "cpu"
    assert pick_device_type("auto") in ("cuda", "mps", "cpu")
    with pytest.raises(ConfigError, match="'tpu': .* choose auto or .*cpu"):
        pick_device_type("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="finds none here"):
            pick_device_type("cuda")


def test_one_process_is_rank_0_of_1(capsys):
    assert rank_and_world() == (0, 1)
    print0("hello")
    assert capsys.readouterr().out == "hello\n"


def test_progress_in_a_log_prints_a_line_when_ten_seconds_have_passed(monkeypatch, capsys):
    clock = itertools.count(0, 4)  # every look at the clock finds it 4 s later
    monkeypatch.setattr(common.time, "monotonic", lambda: next(clock))
    with progress("Tokenizing", 5000, "documents") as advance:
        for _ in range(5):
            advance(1000)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Tokenizing: 3,000 of 5,000 documents"
    assert len(lines) == 1


def test_progress_without_a_total(monkeypatch, capsys):
    clock = itertools.count(0, 20)
    monkeypatch.setattr(common.time, "monotonic", lambda: next(clock))
    with progress("Reading", None) as advance:
        advance()
    assert capsys.readouterr().out.splitlines()[0] == "Reading: 1"


def test_a_missing_package_is_told_with_the_remedy():
    require_package("json")
    with pytest.raises(ConfigError, match=r"no_such_module.*pip install .*\[export\]"):
        require_package("no_such_module")
    with pytest.raises(ConfigError, match="build it yourself"):
        require_package("no_such_module", "build it yourself")
