"""scripts.chat_eval as a user runs it: tables, figures, answers, what cannot be run."""

import json
import re
import shutil
import sys

import pytest
from tiny_checkpoint import save, tiny_model

from nanochat.common import ConfigError, DataError, NanochatError
from nanochat.tools import sandbox
from nanochat.training.log import read_metrics
from scripts import chat_eval
from scripts.chat_eval import Config, main
from tasks.catalog import task_or_why_not
from tasks.source import data_file

MMLU_ROW = {"question": "Which?", "subject": "s", "choices": ["a", "b", "c", "d"], "answer": 1}
ARC_ROW = {
    "question": "Hot?",
    "choices": {"text": ["ice", "fire"], "label": ["A", "B"]},
    "answerKey": "B",
}
GSM8K_ROW = {"question": "6*7?", "answer": "<<6*7=42>>42\n#### 42"}
PROBLEM = {"task_id": "Own/0", "prompt": "def one():\n", "canonical_solution": "    return 1\n"}
PROBLEM |= {"test": "def check(f):\n    assert f() == 1\n", "entry_point": "one"}


@pytest.fixture
def checkpoint(base_dir):
    """An untrained chat model with room for a question; returns its run folder."""
    return save(stage="sft", step=3, model=tiny_model(sequence_len=256)).parent


@pytest.fixture
def data(tmp_path):
    """A folder a data set, as a hub lays them out or as a user may."""
    files = {
        "arc/ARC-Easy/test.jsonl": [ARC_ROW] * 3,
        "arc/ARC-Challenge/test.jsonl": [ARC_ROW] * 4,
        "mmlu/test.jsonl": [MMLU_ROW] * 5,
        "gsm8k/test.jsonl": [GSM8K_ROW] * 2,
        "humaneval/test.jsonl": [PROBLEM] * 2,
    }
    for name, rows in files.items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "data"


def five_tasks(data) -> str:
    sources = {"arc-easy": "arc/ARC-Easy", "arc-challenge": "arc/ARC-Challenge"}
    sources |= {"mmlu": "mmlu", "gsm8k": "gsm8k", "humaneval": "humaneval"}
    return "|".join(f"{name}@{data / folder}" for name, folder in sources.items())


def answers(run_folder, name):
    text = (run_folder / "answers" / f"{name}-step3.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def run(tasks, **settings) -> None:
    main(Config(tasks=tasks, device_type="cpu", max_tokens=8, **settings))


@pytest.mark.slow
def test_figures_answers_and_controls(checkpoint, data, capsys):
    run(f"mmlu@{data / 'mmlu'}|gsm8k@{data / 'gsm8k'}|identity", limit=2, control=True)
    record = read_metrics(checkpoint)[-1]
    assert (record["stage"], record["step"]) == ("sft", 3)
    for name in ("mmlu", "gsm8k", "identity"):
        assert record[f"examples/{name}"] == 2 and 0 <= record[f"accuracy/{name}"] <= 1
        assert f"stderr/{name}" in record
    assert record["centred/mmlu"] == (record["accuracy/mmlu"] - 0.25) / 0.75
    assert record["baseline/mmlu"] == 0.25 and record["baseline/gsm8k"] == 0
    assert record["centred/gsm8k"] == record["pass@1/gsm8k"] == record["accuracy/gsm8k"]
    assert {"control/mmlu", "control_stderr/mmlu", "control/gsm8k"} <= record.keys()
    assert not {"control/identity", "centred/identity", "chatcore"} & record.keys()

    first = answers(checkpoint, "mmlu")[0]
    assert first["sample"] == 0 and first["expected"] == "B"
    assert (
        first["completion"] == first["extracted"] == max(first["logits"], key=first["logits"].get)
    )
    assert first["right"] == (first["completion"] == "B") and "- b=B" in first["prompt"]
    asked = answers(checkpoint, "gsm8k")
    assert [line["index"] for line in asked] == [0, 1]
    assert {"prompt", "completion", "extracted", "right"} < asked[0].keys()
    assert asked[0]["expected"] == "42" and "6*7?" in asked[0]["prompt"]
    for line in answers(checkpoint, "mmlu-control"):
        assert f"- b={line['expected']}" in line["prompt"]

    out = capsys.readouterr().out
    assert "identity: no control" in out
    missing = "arc-easy, arc-challenge, humaneval"
    assert f"ChatCORE: not given, for want of greedy answers to {missing}" in out


def test_several_samples_give_pass_at_k_and_no_chatcore(checkpoint, data, capsys):
    run(f"gsm8k@{data / 'gsm8k'}", num_samples=3)
    record = read_metrics(checkpoint)[-1]
    assert {"pass@1/gsm8k", "pass@3/gsm8k", "stderr_pass@3/gsm8k"} <= record.keys()
    lines = answers(checkpoint, "gsm8k")
    assert [(line["index"], line["sample"]) for line in lines] == [
        (index, sample) for index in range(2) for sample in range(3)
    ]
    assert len({line["completion"] for line in lines}) > 1
    assert "pass@3" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="3 answers to a question at temperature 0"):
        run(f"gsm8k@{data / 'gsm8k'}", num_samples=3, temperature=0.0)


def test_what_cannot_be_run_says_why_and_stops_nothing(checkpoint, data, monkeypatch, capsys):
    asked = []

    def none_here(**settings):
        asked.append(settings)
        raise sandbox.ExecutionUnavailable("no tier on this machine")

    monkeypatch.setattr(chat_eval, "Sandbox", none_here)
    run(f"arc-easy@{data / 'arc'}|mmlu@{data / 'gsm8k'}|humaneval@{data / 'humaneval'}")
    out = capsys.readouterr().out
    assert "humaneval" in out and "not run: no tier on this machine" in out
    assert "not run" in out and "expected question, choices, answer" in out
    record = read_metrics(checkpoint)[-1]
    assert "accuracy/arc-easy" in record and "accuracy/mmlu" not in record
    with pytest.raises(DataError, match="none of humaneval could be run"):
        run("humaneval", unsafe_execution=True)
    assert asked == [{"unsafe": False}, {"unsafe": True}]
    with pytest.raises(ConfigError, match="task 'mmul' is unknown"):
        run("mmul")


@pytest.mark.slow
def test_chatcore_of_all_five_with_programs_in_the_sandbox(checkpoint, data, capsys):
    try:
        with sandbox.Sandbox():
            pass
    except sandbox.ExecutionUnavailable as error:
        pytest.skip(f"needs a sandbox: {error}")
    run(five_tasks(data))
    record = read_metrics(checkpoint)[-1]
    names = ("arc-easy", "arc-challenge", "mmlu", "gsm8k", "humaneval")
    assert record["chatcore"] == pytest.approx(sum(record[f"centred/{n}"] for n in names) / 5)
    assert re.search(r"ChatCORE .* ± ", capsys.readouterr().out) and "chatcore_stderr" in record
    line = answers(checkpoint, "humaneval")[0]
    assert line["verdict"] != "passed" and not line["right"]
    assert {"error", "extracted", "expected", "task_id"} < line.keys()


@pytest.mark.slow
def test_python_as_the_tool_runs_in_the_sandbox(checkpoint, data):
    try:
        with sandbox.Sandbox():
            pass
    except sandbox.ExecutionUnavailable as error:
        pytest.skip(f"needs a sandbox: {error}")
    run(f"gsm8k@{data / 'gsm8k'}", tool="python")
    assert read_metrics(checkpoint)[-1]["examples/gsm8k"] == 2


@pytest.mark.slow
def test_a_hugging_face_folder_is_measured_by_the_same_code(base_dir, checkpoint, data, tmp_path):
    pytest.importorskip("transformers")
    tasks = f"arc-easy@{data / 'arc'}|mmlu@{data / 'mmlu'}|gsm8k@{data / 'gsm8k'}"
    run(tasks)
    shutil.copytree(checkpoint / "step_000003", tmp_path / "exported")
    run(tasks, hf_path=str(tmp_path / "exported"))
    ours = read_metrics(checkpoint)[-1]
    theirs = read_metrics(base_dir / "hf_evaluations" / "exported")[-1]
    assert theirs["stage"] == "hf"
    assert {k: v for k, v in theirs.items() if "/" in k} == {
        k: v for k, v in ours.items() if "/" in k
    }


# ---------------------------------------------------------------- where data is from


def test_a_source_is_a_file_a_folder_or_a_hub_id(data, tmp_path, monkeypatch):
    name = "main/test-00000-of-00001.parquet"
    ask = ("openai/gsm8k", name, "test")
    file = data / "gsm8k" / "test.jsonl"
    assert data_file(str(file), *ask) == data_file(data / "gsm8k", *ask) == file
    for place in (name, "test-00000-of-00001.parquet"):
        found = tmp_path / place.replace("/", "-") / place
        found.parent.mkdir(parents=True)
        found.touch()
        (found.parent / "test-other.parquet").touch()
        assert data_file(tmp_path / place.replace("/", "-"), *ask) == found
    with pytest.raises(DataError, match="found 5 files for split test among 5 data files"):
        data_file(data, *ask)
    with pytest.raises(DataError, match="neither a file, nor a folder, nor a hub id such as ow"):
        data_file("./absent.parquet", *ask)
    monkeypatch.setattr("tasks.source.hub_file", lambda repo, file: (repo, file))
    assert data_file(None, *ask) == ("openai/gsm8k", name)
    assert data_file("me/mine", *ask) == ("me/mine", name)


@pytest.mark.slow
def test_real_folders_load_as_they_lie(shared_data):
    hub = shared_data / "hub" / "datasets"
    sizes = {
        f"gsm8k@{hub / 'openai/gsm8k'}": 1319,
        f"mmlu@{hub / 'cais/mmlu'}": 14042,
        f"arc-easy@{hub / 'allenai/ai2_arc'}": 2376,
        f"arc-challenge@{hub / 'allenai/ai2_arc'}": 1172,
        f"arc-challenge@{hub / 'allenai/ai2_arc/ARC-Challenge'}": 1172,
        f"humaneval@{hub / 'openai/openai_humaneval'}": 164,
    }
    for text, size in sizes.items():
        assert len(task_or_why_not(text, "cpu", lambda: None)) == size


def test_a_rank_without_data_says_why():
    def none_here():
        raise NanochatError("no tier")

    assert task_or_why_not("humaneval", "cpu", none_here) == "no tier"
    assert "neither a file" in task_or_why_not("mmlu@./absent", "cpu", none_here)


def test_the_command_line_has_the_short_names(monkeypatch, checkpoint, data, capsys):
    from nanochat.configurator import cli

    flags = ["chat_eval", "-i", "sft", "-a", f"mmlu@{data / 'mmlu'}", "--device-type=cpu"]
    monkeypatch.setattr(sys, "argv", flags)
    cli(main, Config)
    assert "sft tiny, step 3" in capsys.readouterr().out


def test_tools_are_not_for_a_hugging_face_folder(tmp_path):
    with pytest.raises(ConfigError, match="measures a model without tools"):
        run("mmlu", hf_path=str(tmp_path), tool="python")
