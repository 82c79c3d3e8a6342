"""The notebook: its source, its outputs, its settings, and a whole run of it that is cut short."""

import ast
import dataclasses
import getpass
import importlib
import json
import os
import re
import shutil
import socket
import time
from pathlib import Path

import pytest
from test_setup import module_and_flags, recipe_commands
from tiny_checkpoint import save

from nanochat.checkpoint.index import available_checkpoints, find_checkpoint
from nanochat.common import ConfigError
from nanochat.publishing.mirror import copy_to_folder
from notebooks import setup
from notebooks.settings import Machine, Settings, choose

nbformat = pytest.importorskip("nbformat")
ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "notebooks" / "train_on_colab.ipynb"
STUB = ROOT / "tests" / "colab_stub"
GPUS = {  # FLOP/s by data sheet, memory as CUDA tells it
    "T4": Machine("cuda", "Tesla T4", 65e12, 15.6e9, "float16"),
    "V100": Machine("cuda", "Tesla V100-SXM2-16GB", 125e12, 16.9e9, "float16"),
    "L4": Machine("cuda", "NVIDIA L4", 121e12, 23.7e9, "bfloat16"),
    "A100": Machine("cuda", "NVIDIA A100-SXM4-40GB", 312e12, 42.4e9, "bfloat16"),
}
CPU = Machine("cpu", "cpu", 1e11, 0, "float32")
TINY = {
    "data": str(ROOT / "docs"), "num_shards": 2, "max_chars": 50_000, "depth": 1, "head_dim": 32,
    "sequence_len": 256, "vocab_size": 512, "tied": True, "base_seconds": 1, "mid_seconds": 1,
    "sft_seconds": 1, "base_tokens_per_step": 512, "mid_tokens_per_step": 512, "eval_tokens": 256,
    "save_every": 20, "mid_mixture": "identity:0.1", "sft_mixture": "identity:0.05",
    "val_mixture": "identity:0.1", "tasks": "arithmetic|identity", "questions": 2,
}  # fmt: skip


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture
def colab(base_dir):
    """notebooks/colab.py, which needs IPython."""
    pytest.importorskip("IPython")
    return importlib.import_module("notebooks.colab")


# ---------------------------------------------------------------- the committed file


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(NOTEBOOK, 4)


def test_the_notebook_is_what_its_source_makes(committed):
    pytest.importorskip("nbclient")
    made = importlib.import_module("dev.make_notebook").make()
    for ours, theirs in zip(made.cells, committed.cells, strict=True):
        names = ("id", "cell_type", "source", "metadata")
        assert [ours[name] for name in names] == [theirs[name] for name in names]
    assert made.metadata == committed.metadata


def test_its_outputs_are_small_whole_and_without_error(committed):
    assert NOTEBOOK.stat().st_size < 300_000
    cells = code_cells(committed)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    silent = [cell.source for cell in cells if not cell.outputs]
    assert silent == []
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) >= 3  # a stage's curves each


def test_its_outputs_name_no_folder_user_or_registry_of_a_machine(committed):
    text = "".join(json.dumps(output) for c in code_cells(committed) for output in c.outputs)
    text = re.sub(r'"image/png": "[^"]*"', "", text)
    found = re.findall(r"/(?:work|root|home|tmp|Users|opt|usr)/\S{,40}", text)
    found += re.findall(r"\S*(?:pypi|index-url)\S*", text, re.IGNORECASE)
    found += re.findall(rf"\b{getpass.getuser()}\b", text)
    assert found == []


def test_every_flag_that_it_gives_is_a_flag_of_the_script(committed):
    calls = [
        node for cell in code_cells(committed) for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "run.script"
    ]  # fmt: skip
    assert len(calls) >= 9
    for call in calls:
        script = importlib.import_module(f"scripts.{call.args[0].value}")
        fields = {field.name for field in dataclasses.fields(script.Config)}
        named = {keyword.arg for keyword in call.keywords if keyword.arg}
        more = [keyword.value.attr for keyword in call.keywords if not keyword.arg]
        given = named.union(*(getattr(choose(CPU, 15), flags) for flags in more))
        assert given <= fields, call.args[0].value


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("gpu", "minutes", "depth"),
    [("T4", 120, 8), ("V100", 120, 8), ("L4", 120, 8), ("A100", 120, 10), ("T4", 45, 6),
     ("L4", 300, 10), ("T4", 0.1, 4)],
)  # fmt: skip
def test_a_gpu_and_the_minutes_choose_the_depth(gpu, minutes, depth):
    settings = choose(GPUS[gpu], minutes)
    assert settings.depth == depth
    assert (settings.sequence_len, settings.data) == (1024, "fineweb-edu")


def test_memory_limits_the_depth_whatever_the_speed():
    fast = GPUS["A100"]._replace(flops=1e16)
    small, large = (choose(fast._replace(memory=m), 120).depth for m in (5e9, 80e9))
    assert small < large == 20
    with pytest.raises(ConfigError, match=r"2\.1 GB, too little for depth 4"):
        choose(fast._replace(memory=2.1e9), 120)


def test_settings_that_are_given_win_and_a_cpu_gets_the_small_recipe():
    assert choose(GPUS["T4"], 120, data="./texts", depth=12).depth == 12
    small = choose(CPU, 15)
    assert (small.depth, small.data, small.tied, small.questions) == (3, "packaged", True, 400)
    assert (small.base_seconds, small.mid_seconds, small.sft_seconds) == (14, 878, 9)
    with pytest.raises(ConfigError, match="MINUTES is 0"):
        choose(CPU, 0)


def test_a_cpu_has_the_flags_of_the_speedrun():
    """But for times, tags and what the notebook needs for GGUF."""
    commands = dict(map(module_and_flags, recipe_commands(RECIPE="cpu")))
    small = choose(CPU, 15)
    shape = {"depth": small.depth, "head_dim": small.head_dim, "sequence_len": small.sequence_len}
    stages = {
        "tok_train": small.tok_flags,
        "base_train": small.base_flags | shape | {"total_batch_size": small.base_tokens_per_step},
        "mid_train": small.mid_flags
        | {"mixture": small.mid_mixture, "total_batch_size": small.mid_tokens_per_step},
        "chat_sft": small.sft_flags | {"mixture": small.sft_mixture},
    }
    for stage, flags in stages.items():
        theirs = dict(flag[2:].partition("=")[::2] for flag in commands[f"scripts.{stage}"])
        for name, value in flags.items():
            expected = "" if value is True else str(value)
            assert theirs[name.replace("_", "-")] == expected, (stage, name)


def test_a_checkpoint_is_saved_every_twenty_minutes_of_the_estimate():
    """T4, depth 8: 302.8 MFLOPs a token at 0.3 x 65e12 are 64,400 tokens/s, 2.03 s a step."""
    assert choose(GPUS["T4"], 120).save_every == pytest.approx(1200 / 2.03, rel=0.02)


# ---------------------------------------------------------------- packages


def test_only_what_is_missing_or_too_old_is_installed():
    colab = {"torch": "2.11.0+cu128", "numpy": "2.1.3", "transformers": "5.15.0", "rich": "12.1"}
    wanted = ["torch>=2.11", "numpy>=2.0", "tyro>=0.9", "rich>=13", "transformers>=5.0"]
    assert setup.missing(wanted, colab.get) == ["tyro>=0.9", "rich>=13"]


def test_what_is_missing_is_installed_by_name_and_pytorch_never(monkeypatch):
    versions, real = {"tyro": None, "torch": "2.11.0+cu128"}, setup.importlib.metadata.version

    def version(name: str) -> str:
        if versions.get(name, name) is None:
            raise setup.importlib.metadata.PackageNotFoundError(name)
        return versions.get(name) or real(name)

    commands = []
    monkeypatch.setattr(setup.importlib.metadata, "version", version)
    monkeypatch.setattr(setup.subprocess, "run", lambda command, **_: commands.append(command))
    setup.install()
    assert "tyro>=0.9" in commands[0] and "--constraint" in commands[0]
    assert not [word for command in commands for word in command if word.startswith("torch")]
    versions["torch"] = "2.9.0"
    with pytest.raises(SystemExit, match=r"PyTorch is 2\.9\.0, nanochat needs torch>=2\.11"):
        setup.install()


# ---------------------------------------------------------------- the copy on Drive


def test_the_mirror_keeps_two_checkpoints_and_gives_the_newest_back(
    colab, base_dir, tmp_path, monkeypatch
):
    mirror = tmp_path / "mirror"
    for step in (1, 2, 3):
        folder = save(step, "base", "colab")
        copy_to_folder(folder, mirror)
    metrics = folder.parent / "metrics.jsonl"
    metrics.write_text('{"step": 3}\n')
    colab.back_up("colab", mirror)
    assert [p.name for p in sorted((mirror / "base_checkpoints/colab").glob("step_*"))] == [
        "step_000002", "step_000003",
    ]  # fmt: skip
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "new machine"))
    (mirror / "base_checkpoints/colab/step_000003/model.safetensors").write_bytes(b"damaged")
    colab.restore("colab", mirror)
    assert find_checkpoint("base", "colab").name == "step_000002"
    assert (tmp_path / "new machine/base_checkpoints/colab/metrics.jsonl").exists()
    colab.restore("colab", mirror)  # what is there already stays
    assert len(available_checkpoints("base", "colab")) == 1


def test_an_environment_variable_wins_over_the_form(colab, monkeypatch, capsys):
    monkeypatch.setenv("MINUTES", "2.5")
    form = {"minutes": 120.0, "data": "auto"}
    assert colab.from_environment(form) == {"minutes": 2.5, "data": "auto"}
    assert "minutes = 2.5, from the environment" in capsys.readouterr().out


def test_flags_are_spelled_as_the_scripts_read_them(colab):
    flags = {"depth": 8, "resume": True, "tie_word_embeddings": False, "mirror": None}
    assert colab.as_flags(flags) == ["--depth=8", "--resume", "--no-tie-word-embeddings"]


@pytest.mark.slow
def test_a_script_that_fails_stops_the_notebook(colab, forked_python, monkeypatch):
    monkeypatch.setattr("sys.executable", str(forked_python))
    run = colab.Run("colab", Settings(**TINY))
    with pytest.raises(ConfigError, match="status 2"):
        run.script("report", no_such_flag=1)
    assert run.done == []


# ---------------------------------------------------------------- the whole of it


class Colab:
    """A Colab machine: a kernel with a stub of google.colab, a base folder, a Drive that stays."""

    def __init__(self, folder: Path, python: Path):
        self.base, self.drive = folder / "base", folder / "drive" / "MyDrive" / "nanochat"
        self.environment = os.environ | {
            "NANOCHAT_BASE_DIR": str(self.base), "DRIVE": str(self.drive), "OPEN_PAGE": "1",
            "PYTHONPATH": f"{STUB}:{ROOT}", "IPYTHONDIR": str(folder / "ipython"),
            "PYTHON_OF_SCRIPTS": str(python),
            "TORCH_COMPILE_DISABLE": "1", "NANOCHAT_DTYPE": "float32",
        }  # fmt: skip

    def run_all(self, last: str = "") -> dict[str, str]:
        """Runs the cells, up to the one with this title, and kills the kernel; what each printed,
        by its title."""
        client = importlib.import_module("nbclient").NotebookClient(
            nbformat.read(NOTEBOOK, 4),
            timeout=900,
            shutdown_kernel="immediate",
            resources={"metadata": {"path": str(ROOT)}},
        )
        printed = {}
        with client.setup_kernel(env=self.environment):
            for number, cell in enumerate(client.nb.cells):
                if cell.cell_type != "code":
                    continue
                client.execute_cell(cell, number)
                title = cell.source.splitlines()[0].removeprefix("#@title ")
                printed[title] = "".join(o.get("text", "") for o in cell.outputs)
                if title == last:
                    break
        return printed

    def lose_machine(self) -> None:
        """All that is not on Drive is gone."""
        shutil.rmtree(self.base)


@pytest.mark.slow
def test_run_all_goes_on_after_the_machine_is_lost(tmp_path, forked_python):
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    machine = Colab(tmp_path, forked_python)
    # The smallest settings there are, left on Drive as if by an earlier session.
    machine.drive.mkdir(parents=True)
    kept = {"settings": TINY, "done": []}
    (machine.drive / "notebook-colab.json").write_text(json.dumps(kept))
    first = machine.run_all(last="Pretrain")
    assert "tyro" in first["Get the code"] and "nothing, all" in first["Install what is missing"]
    assert "mirror: " in first["Pretrain"] and "base: " in first["Pretrain"]
    base = max((machine.drive / "base_checkpoints" / "colab").glob("step_*"))
    manifest = (base / "manifest.json").read_bytes()

    machine.lose_machine()
    second = machine.run_all()
    assert "restored from" in second["Settings"] and "base_train" in second["Settings"]
    assert second["Train the tokenizer"].count("done before") == 2
    assert second["Pretrain"].startswith("done before: python -m scripts.base_train")
    assert len(second["Pretrain"].splitlines()) == 1
    assert (base / "manifest.json").read_bytes() == manifest
    records = (machine.base / "base_checkpoints/colab/metrics.jsonl").read_text().splitlines()
    assert sum("session" in json.loads(line) for line in records) == 1
    for title, words in {
        "Measure the base model": "bits per byte",
        "Midtrain": "no checkpoint of mid colab to resume from",
        "Fine-tune": "sft: ",
        "Evaluate": "identity",
        "The chat page": "answers 200",
        "Export": "model-q8_0.gguf",
        "Download": "downloaded hf_model.zip",
    }.items():
        assert words in second[title], (title, second[title])
    assert (machine.drive / "exports" / "colab" / "gguf_model.zip").exists()
    port = int(re.search(r"port (\d+) answers", second["The chat page"])[1])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:  # the kernel is gone, and its server goes with it
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                break
        time.sleep(0.5)
    else:
        pytest.fail(f"the server of a kernel that was killed still listens at port {port}")
