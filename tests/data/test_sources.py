"""Where text comes from: rows, local folders, the packaged text, a hub that fails."""

import gzip
import itertools
import json
import os
import socket
import subprocess
import sys
import types

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from forked import run_code

from nanochat.common import ConfigError, DataError
from nanochat.data.hub import with_retries
from nanochat.data.rows import read_rows
from nanochat.data.sources import LONGEST_PLAIN, hold_out, open_source

ROWS = [{"text": "one", "n": 1}, {"text": "zwei é", "n": 2}, {"text": None, "n": 3}]


def write(path, rows) -> None:
    """Rows to a file, in the form that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines))
    elif path.suffix == ".zst":
        path.write_bytes(zstandard.compress(lines))
    else:
        path.write_bytes(lines)


def texts(source, split="train") -> list[str]:
    return [text for shard in source.shards(split) for text in shard.texts()]


# ---------------------------------------------------------------- rows


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_rows_of_each_kind(tmp_path, name):
    write(tmp_path / name, ROWS)
    assert list(read_rows(tmp_path / name)) == ROWS
    assert [row["text"] for row in read_rows(tmp_path / name, ["text"])] == ["one", "zwei é", None]


@pytest.mark.parametrize(
    "line, message", [(b"{", "Expecting .* expected one JSON"), (b"[1]", "found list")]
)
def test_malformed_row_is_named_by_line(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "x"}\n\n' + line + b"\n")
    with pytest.raises(DataError, match=f"a.jsonl:3: {message}"):
        list(read_rows(path))


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.gz", "a.jsonl.zst"])
def test_truncated_file_is_named(tmp_path, name):
    write(tmp_path / name, [{"text": f"{i} {os.urandom(20).hex()}"} for i in range(2000)])
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=name):
        list(read_rows(tmp_path / name))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none.jsonl cannot be read"):
        list(read_rows(tmp_path / "none.jsonl"))


def test_invalid_utf8_is_replaced_and_counted(tmp_path):
    column = pa.array([b"good", b"caf\xe9", None]).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "na\xefve"}\n')
    write(tmp_path / "c.jsonl", [{"text": "held out"}])
    source = open_source(str(tmp_path))
    assert texts(source) == ["good", "caf\ufffd", "na\ufffdve"]
    assert source.counts == {
        "documents": 3,
        "rows without text, left out": 1,
        "documents with U+FFFD, which replaces invalid UTF-8": 2,
    }


# ---------------------------------------------------------------- holding out


@pytest.mark.parametrize("n", [0, *range(2, 45), 200, 211])
def test_hold_out_splits_everything(n):
    train, val = list(hold_out(range(n), False)), list(hold_out(range(n), True))
    assert sorted(train + val) == list(range(n))
    assert len(val) == (n // 20 if n >= 20 else int(n > 1))
    assert all(sum(20 * b <= i < 20 * b + 20 for i in val) == 1 for b in range(n // 20))


def test_hold_out_is_no_comb():
    assert len({i % 20 for i in hold_out(range(400), True)}) > 5


# ---------------------------------------------------------------- local files


def test_folder_of_tables(tmp_path, capsys):
    write(tmp_path / "b.parquet", ROWS)
    write(tmp_path / "a" / "x.jsonl", [{"text": "x"}, {"text": "  "}, {"other": 1}])
    write(tmp_path / "c.jsonl.gz", [{"text": "val"}])
    (tmp_path / "notes.txt").write_text("plain", encoding="utf-8")
    (tmp_path / "image.png").write_bytes(b"")
    source = open_source(str(tmp_path))
    printed = capsys.readouterr().out
    assert "validation is the last file, c.jsonl.gz" in printed
    assert "files left out: 1 not *.parquet" in printed
    assert [shard.name for shard in source.shards("train")] == [
        "a/x.jsonl",
        "b.parquet",
        "text-files",
    ]
    for _ in range(2):  # counts are of one reading, however often it is read
        assert texts(source) == ["x", "one", "zwei é", "plain"]
        assert texts(source, "val") == ["val"]
    assert source.counts == {"documents": 5, "rows without text, left out": 3}


def test_folder_of_plain_files(tmp_path, capsys):
    for i in range(30):
        (tmp_path / f"{i:02}.{('txt', 'md')[i % 2]}").write_text(f"text {i}", encoding="utf-8")
    source = open_source(str(tmp_path))
    assert "validation is one document in 20" in capsys.readouterr().out
    train, val = texts(source), texts(source, "val")
    assert (len(train), len(val)) == (29, 1)
    assert sorted(train + val) == sorted(f"text {i}" for i in range(30))


def test_one_long_text_file_is_cut_at_lines(tmp_path):
    lines = [f"line {i} é\r\n" for i in range(30_000)]
    (tmp_path / "book.txt").write_bytes("\ufeff".encode() + "".join(lines).encode())
    source = open_source(str(tmp_path / "book.txt"))
    train, val = texts(source), texts(source, "val")
    assert len(val) == 1 and len(train) > 2
    assert sum(len(text) for text in train + val) == sum(len(line) - 1 for line in lines)
    assert all(text.startswith("line ") and text.endswith("\n") for text in train + val)
    assert max(map(len, train + val)) < LONGEST_PLAIN + 20


def test_empty_folder(tmp_path):
    (tmp_path / "image.png").write_bytes(b"")
    with pytest.raises(DataError, match="holds no text: expected .*parquet"):
        open_source(str(tmp_path))


def test_unreadable_file_is_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 this is none")
    write(tmp_path / "b.parquet", ROWS)
    with pytest.raises(DataError, match="a.parquet"):
        texts(open_source(str(tmp_path)))


def test_no_row_with_text(tmp_path):
    write(tmp_path / "a.jsonl", [{"txt": "x"}] * 3)
    write(tmp_path / "b.jsonl", ROWS)
    with pytest.raises(DataError, match="none of its 3 rows has text.*its columns are txt"):
        texts(open_source(str(tmp_path)))


def test_fingerprint_follows_the_data(tmp_path):
    write(tmp_path / "a.jsonl", ROWS)
    first = open_source(str(tmp_path)).fingerprint
    assert open_source(str(tmp_path)).fingerprint == first
    write(tmp_path / "a.jsonl", [*ROWS, {"text": "more"}])
    assert open_source(str(tmp_path)).fingerprint != first


def test_limits(tmp_path, capsys):
    for name in "abcd":
        write(tmp_path / f"{name}.jsonl", [{"text": name * 4}] * 10)
    source = open_source(str(tmp_path), num_shards=2)
    assert "2 of 3 train shards are used" in capsys.readouterr().out
    assert texts(source) == ["aaaa"] * 10 + ["bbbb"] * 10
    assert texts(source, "val") == ["dddd"] * 10
    with pytest.raises(ConfigError, match="num_shards is 0"):
        open_source(str(tmp_path), num_shards=0)


def test_name_that_is_nothing():
    with pytest.raises(DataError, match="'./nowhere' is no folder, file or hub id.*packaged"):
        open_source("./nowhere")


@pytest.mark.slow
def test_packaged_text(capsys):
    try:
        source = open_source("packaged")
    except DataError as error:
        pytest.skip(str(error))
    (train,), (val,) = ([set(s.texts()) for s in source.shards(x)] for x in ("train", "val"))
    assert not train & val
    assert 0.01 < len(val) / (len(train) + len(val)) < 0.04
    assert source.counts == {"documents": len(train) + len(val)}
    assert "packaged text: " in capsys.readouterr().out


# ---------------------------------------------------------------- a hub


@pytest.fixture
def hub(shared_data):
    """Starts the test hub with the given faults; yields a function that gives its address."""
    started = []

    def start(*arguments: str) -> str:
        command = [sys.executable, str(shared_data / "serve_hub.py"), "--port", "0", *arguments]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return started[-1].stdout.readline().strip()

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def run_python(code: str, tmp_path, endpoint: str, **more: str) -> subprocess.CompletedProcess:
    """Runs code with a fresh cache: huggingface_hub reads its settings when it is imported."""
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
    return run_code(code, **settings | more)


DOWNLOAD = """
import time
from concurrent.futures import ThreadPoolExecutor
from nanochat.data.sources import hub_file, hub_files
time.sleep = lambda seconds: None  # between the tries
names = hub_files("openai/gsm8k", "main/*.parquet")
with ThreadPoolExecutor(4) as pool:
    for name, path in zip(names, pool.map(lambda name: hub_file("openai/gsm8k", name), names)):
        print("got", name, path)
"""


def got(finished: subprocess.CompletedProcess) -> dict[str, str]:
    assert finished.returncode == 0, finished.stderr
    found = [line.split() for line in finished.stdout.splitlines() if line.startswith("got ")]
    return {name: path for _, name, path in found}


@pytest.mark.slow
def test_download_from_a_hub_with_faults(hub, shared_data, tmp_path):
    folder = shared_data / "hub" / "datasets" / "openai" / "gsm8k"
    expected = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.glob("main/*.parquet")
    }
    endpoint = hub("--fail", "0.3", "--truncate", "0.3")
    files = got(run_python(DOWNLOAD, tmp_path, endpoint))
    assert len(files) == len(expected) == 2
    for name, data in expected.items():
        with open(files[name], "rb") as file:
            assert file.read() == data

    # A file that was cut on this disk is seen, and fetched again.
    cut = files["main/test-00000-of-00001.parquet"]
    os.truncate(cut, 1000)
    again = got(run_python(DOWNLOAD, tmp_path, hub()))
    assert os.path.getsize(again["main/test-00000-of-00001.parquet"]) == len(
        expected["main/test-00000-of-00001.parquet"]
    )


SOURCE = """
from nanochat.data.sources import open_source
source = open_source("local/books", num_shards=2)
print("got", *[shard.name for shard in source.shards("train") + source.shards("val")])
"""


@pytest.mark.slow
def test_hub_data_set_as_source(hub, tmp_path):
    finished = run_python(SOURCE, tmp_path, hub())
    assert finished.returncode == 0, finished.stderr
    names = finished.stdout.splitlines()[-1].split()[1:]
    assert names == [f"shard_0000{i}.parquet" for i in (0, 1, 4)]  # the last is validation
    assert "2 of 4 train shards are used" in finished.stdout
    # The list is kept: without a hub the source opens all the same.
    assert run_python(SOURCE, tmp_path, "http://127.0.0.1:9").stdout == finished.stdout


FAILING = """
from nanochat.common import DataError
from nanochat.data.sources import hub_file, open_source
for action in (lambda: hub_file("openai/gsm8k", "x"), lambda: open_source("openai/none")):
    try:
        action()
    except DataError as error:
        print("error", error)
"""


@pytest.mark.parametrize("offline, expected", [("0", "404"), ("1", "--data=packaged")])
@pytest.mark.slow
def test_what_a_hub_cannot_give(hub, tmp_path, offline, expected):
    finished = run_python(FAILING, tmp_path, hub(), HF_HUB_OFFLINE=offline)
    errors = [line for line in finished.stdout.splitlines() if line.startswith("error ")]
    assert len(errors) == 2 and all(expected in error for error in errors), finished


def test_address_where_nobody_answers(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    connect = lambda: socket.create_connection(("127.0.0.1", 9))  # noqa: E731
    clock = itertools.count(0, 0.06)
    fake = types.SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda seconds: None)
    monkeypatch.setattr("nanochat.data.hub.time", fake)
    monkeypatch.setattr("nanochat.data.hub.SECONDS_TO_CONNECT", 0.1)
    with pytest.raises(DataError) as caught:
        with_retries("owner/name/x.parquet", connect)
    message = str(caught.value)
    for part in ("owner/name/x.parquet: tried 2 times", "is http://127.0.0.1:9", "--data=packaged"):
        assert part in message


def test_retries_until_it_works(capsys):
    answers = iter([OSError("reset"), DataError("cut short"), "data"])

    def action():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert with_retries("a/b", action) == "data"
    assert capsys.readouterr().out.count("trying again in") == 2
