"""The evaluation bundle: read, checked, downloaded over broken connections."""

import json
import os
import threading
import time
import types
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from nanochat.common import DataError
from nanochat.data import hub
from nanochat.evaluation.core_bundle import URL_VARIABLE, Bundle, CoreTask, download, find_bundle

YAML = """
icl_tasks:
- {label: pick, dataset_uri: a/pick.jsonl, num_fewshot: [2], icl_task_type: multiple_choice,
   continuation_delimiter: "\\nAnswer: "}
- {label: say, dataset_uri: say.jsonl, num_fewshot: [0], icl_task_type: language_modeling}
"""
PICK = {"query": "1+1", "choices": ["2", "3"], "gold": 0}
SAY = {"context": "one two", "continuation": "three"}
FILES = {
    "core.yaml": YAML,
    "eval_meta_data.csv": "Eval Task,#shots,Random baseline\npick,2,50\nsay,0,0\nother,1,25\n",
    "eval_data/a/pick.jsonl": json.dumps(PICK) + "\n",
    "eval_data/say.jsonl": json.dumps(SAY) + "\n",
}


def write_zip(path, files=FILES):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(f"eval_bundle/{name}", text)
    return path


def damaged_zip(path):
    data = bytearray(write_zip(path).read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("eval_bundle/eval_data/say.jsonl")
    data[info.header_offset + 30 + len(info.filename) + 3] ^= 0xFF
    return data


def write_folder(root, files=FILES):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("form", ["zip", "folder", "parent"])
def test_a_zip_and_a_folder_are_read_alike(form, tmp_path):
    path = write_zip(tmp_path / "x.zip") if form == "zip" else tmp_path / "there"
    if form != "zip":
        write_folder(path / "eval_bundle")
        path = path if form == "parent" else path / "eval_bundle"
    bundle = Bundle(path)
    pick, say = bundle.tasks()
    assert pick == CoreTask("pick", "multiple_choice", "a/pick.jsonl", 2, "\nAnswer: ", 0.5)
    assert say == CoreTask("say", "language_modeling", "say.jsonl", 0, " ", 0.0)
    assert bundle.rows(pick) == [PICK] and bundle.rows(say) == [SAY]


@pytest.mark.parametrize(
    "line, problem",
    [
        ('{"query": "x", "choices": ["a"]}', "found no gold"),
        ('{"query": "x", "choices": ["a"], "gold": 1}', "gold is 1, expected 0 to 0"),
        ('{"query": "x"', "no JSON"),
        ("[1]", "found no query"),
    ],
)
def test_a_bad_line_is_named(line, problem, tmp_path):
    files = FILES | {"eval_data/a/pick.jsonl": f"{json.dumps(PICK)}\n{line}\n"}
    bundle = Bundle(write_folder(tmp_path, files))
    with pytest.raises(DataError, match=rf"pick\.jsonl:2: {problem}"):
        bundle.rows(bundle.tasks()[0])


def test_an_empty_continuation_is_an_error(tmp_path):
    files = FILES | {"eval_data/say.jsonl": json.dumps(SAY | {"continuation": " "})}
    bundle = Bundle(write_folder(tmp_path, files))
    with pytest.raises(DataError, match="the continuation is empty"):
        bundle.rows(bundle.tasks()[1])


def test_a_task_without_a_baseline_is_an_error(tmp_path):
    files = FILES | {"eval_meta_data.csv": "Eval Task,Random baseline\npick,50\n"}
    with pytest.raises(DataError, match="say .* has baseline None"):
        Bundle(write_folder(tmp_path, files)).tasks()


@pytest.mark.parametrize("content", [b"", b"no zip at all"])
def test_what_is_no_bundle_is_told_with_the_way_out(content, tmp_path):
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read.*--bundle=FILE"):
        Bundle(tmp_path / "x.zip").tasks()
    with pytest.raises(DataError, match="there is no such file"):
        find_bundle(str(tmp_path / "nowhere"))


def test_damage_is_found_and_named(tmp_path):
    path = tmp_path / "x.zip"
    path.write_bytes(damaged_zip(path))
    with pytest.raises(DataError, match="say.jsonl cannot be read"):
        Bundle(path).read("eval_data/say.jsonl")


@pytest.mark.slow
def test_files_other_than_the_known_ones_are_named(shared_data, tmp_path, capsys):
    real = shared_data / "eval_bundle.zip"
    assert (
        find_bundle(str(real)).changed_files() == [] and "published" not in capsys.readouterr()[0]
    )
    with zipfile.ZipFile(real) as archive:
        archive.extractall(tmp_path)
    copa = tmp_path / "eval_bundle/eval_data/commonsense_reasoning/copa.jsonl"
    copa.write_text(copa.read_text().replace("faucet", "tap"))
    find_bundle(str(tmp_path))
    printed = capsys.readouterr()[0]
    assert printed.count("published figures") == 1 and "copa.jsonl is not the known file" in printed


@pytest.mark.slow
def test_the_public_bundle_has_its_tasks_rows_and_baselines(shared_data):
    bundle = Bundle(shared_data / "eval_bundle.zip")
    tasks = {task.label: task for task in bundle.tasks()}
    assert len(tasks) == 22
    counts = {label: len(bundle.rows(task)) for label, task in tasks.items()}
    known = {"hellaswag": 10042, "hellaswag_zeroshot": 10042, "jeopardy": 2117, "squad": 10570}
    known |= {"coqa": 7983, "bigbench_qa_wikidata": 20321, "copa": 100, "winograd": 273}
    assert {label: counts[label] for label in known} == known
    percent = {"hellaswag": 25, "boolq": 62, "commonsense_qa": 40.3, "squad": 0, "winograd": 50}
    assert {label: round(100 * tasks[label].baseline, 6) for label in percent} == percent
    shots = {"hellaswag_zeroshot": 0, "hellaswag": 10, "agi_eval_lsat_ar": 3, "coqa": 0}
    assert {label: tasks[label].shots for label in shots} == shots
    assert tasks["jeopardy"].delimiter == "\nAnswer: " and tasks["squad"].delimiter == " "


# ---------------------------------------------------------------- downloading


class Handler(BaseHTTPRequestHandler):
    """Serves server.data, after an answer for each of server.faults: an HTTP status, other data, or
    the number of bytes after which the connection breaks."""

    def do_GET(self):
        self.server.asked += 1
        fault = self.server.faults.pop(0) if self.server.faults else None
        if isinstance(fault, str):
            return self.send_error(int(fault))
        body = fault if isinstance(fault, bytes | bytearray) else self.server.data
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:fault] if isinstance(fault, int) else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    quick = types.SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: None)
    monkeypatch.setattr(hub, "time", quick)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.data = write_zip(tmp_path / "made.zip").read_bytes()
        server.faults, server.asked = [], 0
        server.url = f"http://127.0.0.1:{server.server_address[1]}/eval_bundle.zip"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()


def test_a_download_is_tried_again_until_it_is_whole(server, tmp_path, capsys):
    server.faults = [100, "503", b"no zip at all", damaged_zip(tmp_path / "damaged.zip"), "500"]
    download(server.url, tmp_path / "x.zip")
    assert server.asked == 6
    assert (tmp_path / "x.zip").read_bytes() == server.data
    assert capsys.readouterr().out.count("trying again") == 5


def test_damage_that_stays_is_named(server, tmp_path):
    server.data = damaged_zip(tmp_path / "damaged.zip")
    with pytest.raises(DataError, match=r"tried 8 times.*say\.jsonl.*damaged.*--bundle=FILE"):
        download(server.url, tmp_path / "x.zip")
    assert not (tmp_path / "x.zip").exists()


def test_a_missing_file_is_not_asked_for_again(server, tmp_path):
    server.faults = ["404"]
    with pytest.raises(DataError, match="the server answers 404.*--bundle=FILE"):
        download(server.url, tmp_path / "x.zip")
    assert server.asked == 1


def test_without_a_network_the_ways_out_are_named(server, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "SECONDS_TO_CONNECT", 0)
    server.shutdown()
    server.server_close()  # nobody listens there from here on
    with pytest.raises(DataError, match="tried 1 times.*--bundle=FILE.*another address"):
        download(server.url, tmp_path / "x.zip")


def test_the_bundle_is_downloaded_once(server, base_dir, monkeypatch, capsys):
    monkeypatch.setenv(URL_VARIABLE, server.url)
    for _ in range(2):
        assert [task.label for task in find_bundle().tasks()] == ["pick", "say"]
    assert server.asked == 1
    assert os.listdir(base_dir / "eval_bundle") == ["eval_bundle.zip"]
    assert "core.yaml is not the known file" in capsys.readouterr()[0]
