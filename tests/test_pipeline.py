"""Everything, tiny: text, tokenizer, base, mid, SFT, evaluation, chat, as a user runs it.

Also what must hold across processes: a killed run resumed gives the same bits as one that was not
killed, and checkpoints move between one rank and two.
"""

import contextlib
import importlib
import io
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
from exports import proved_here
from forked import run_code, run_script, start
from rank_jobs import free_ports
from safetensors.torch import load_file
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from nanochat import hardware
from nanochat.configurator import cli

ROOT = Path(__file__).resolve().parents[1]
SHAPE = "--depth=2 --head-dim=32 --sequence-len=64 --total-batch-size=512 --device-batch-size=4"
QUICK = "--no-compile --eval-tokens=512 --eval-every=0"
CHATS = "identity:0.066,arithmetic:0.02,smoltalk@{chats}:1"
STEPS = "--num-steps=16"


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory, share_compiled):
    """A base folder, raw text and chats; the tokenizer is trained."""
    folder = tmp_path_factory.mktemp("pipeline")
    share_compiled(folder / "base")
    texts, chats = folder / "texts", folder / "chats"
    texts.mkdir()
    chats.mkdir()
    rows = [{"text": text} for _, text in sorted(topics.items())]
    for name, part in (("a", rows[:-5]), ("b", rows[-5:])):
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (texts / f"{name}.jsonl").write_text(lines)
    for split, count in (("train", 20), ("test", 5)):
        said = [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello."}]
        (chats / f"{split}.jsonl").write_text((json.dumps({"messages": said}) + "\n") * count)
    run(folder, "scripts.tok_train", f"--data={texts} --vocab-size=512 --max-chars=200000")
    return folder


def environment(home: Path) -> dict:
    settings = {"NANOCHAT_BASE_DIR": str(home / "base"), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **settings, "NANOCHAT_DTYPE": "float32", "HF_HUB_OFFLINE": "1"}


def run(home: Path, module: str, flags: str, *, python: str = "", status: int = 0) -> str:
    """Runs a script to its end; returns what it printed.

    python: with it, `python -m module flags`; else in this process, as imports take seconds.
    """
    if python:
        done = subprocess.run(
            [python, "-m", module, *flags.split()],
            cwd=ROOT,
            env=environment(home),
            capture_output=True,
            text=True,
        )
        code, printed = done.returncode, done.stdout + done.stderr
    else:
        code, printed = run_here(home, module, flags)
    assert code == status, f"{module} {flags}\n{printed}"
    return printed


def run_here(home: Path, module: str, flags: str) -> tuple[int, str]:
    """(exit status, what it printed) of a script in this process, with one thread as elsewhere."""
    script, printed = importlib.import_module(module), io.StringIO()
    threads, code = torch.get_num_threads(), 0
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(home).items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", [module, *flags.split()])
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            try:
                cli(script.main, script.Config)
            except SystemExit as ended:
                code = ended.code
            finally:
                torch.set_num_threads(threads)
                torch.use_deterministic_algorithms(False)
    return code or 0, printed.getvalue()


def interrupt(home: Path, module: str, flags: str, metrics: Path, step: int, number: int) -> int:
    """Starts a script and sends it a signal once `step` is logged; returns its exit status."""
    process = start(run_script, module, flags, **environment(home))
    wait_for_step(metrics, step, process)
    os.kill(process.pid, number)
    process.join(300)
    return process.exitcode


def wait_for_step(metrics: Path, step: int, process) -> None:
    """Until a step is logged by this process, which must be alive then."""
    deadline = time.monotonic() + 300
    while not metrics.exists() or f'"step": {step},' not in metrics.read_text():
        assert process.is_alive() and time.monotonic() < deadline, f"no step {step}"
        time.sleep(0.002)


def stage_flags(home: Path, stage: str, tag: str) -> tuple[str, str]:
    """(module, flags) of a training stage in its tiny form."""
    chats = CHATS.format(chats=home / "chats")
    mixture = f"--mixture={chats} --val-mixture=identity:0.1"
    return {
        "base": (
            "scripts.base_train",
            f"{SHAPE} {QUICK} --data={home / 'texts'} --model-tag={tag} --sample-every=-1",
        ),
        "mid": (
            "scripts.mid_train",
            f"{QUICK} {mixture} --total-batch-size=512 --device-batch-size=4 --go-on=0.5 "
            f"--document-mask --sampled-ids=200 --base-tag=tiny --model-tag={tag}",
        ),
        "sft": (
            "scripts.chat_sft",
            f"{QUICK} {mixture} --examples-per-step=8 --device-batch-size=4 "
            f"--parent-tag=tiny --model-tag={tag}",
        ),
        "rl": (
            "scripts.chat_rl",
            f"{QUICK} --task=tests.short_answers:Few --reward=tests.short_answers:reward --no-gate "
            f"--prompts-per-step=2 --num-samples=4 --max-tokens=8 --eval-problems=4 "
            f"--device-batch-size=4 --parent-tag=tiny --model-tag={tag}",
        ),
    }[stage]


@pytest.fixture(scope="module")
def trained(home, forked_python):
    """The four stages, uninterrupted, under the tag "tiny"."""
    for stage in ("base", "mid", "sft", "rl"):
        module, flags = stage_flags(home, stage, "tiny")
        flags += f" {STEPS} --save-every=8 --keep-last=9"
        python = str(forked_python) if stage == "sft" else ""  # as a user does: the report says
        run(home, module, flags, python=python)
    return home


def last_step(home: Path, stage: str, tag: str) -> Path:
    return sorted((home / "base" / f"{stage}_checkpoints" / tag).glob("step_*"))[-1]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Weights and optimizer state. subtle: not the files' bytes, whose headers vary in order."""
    files = [folder / "model.safetensors", *sorted((folder / "optimizer").iterdir())]
    return {f"{f.stem}/{name}": t for f in files for name, t in load_file(f).items()}


def losses(home: Path, stage: str, tag: str) -> list[tuple[int, float]]:
    text = (home / "base" / f"{stage}_checkpoints" / tag / "metrics.jsonl").read_text()
    records = map(json.loads, text.splitlines())
    return [(record["step"], record["loss"]) for record in records if "loss" in record]


@pytest.mark.parametrize(
    ("stage", "number"),
    [
        ("base", signal.SIGKILL),
        ("base", signal.SIGTERM),
        ("mid", signal.SIGTERM),
        ("sft", signal.SIGKILL),
        ("rl", signal.SIGKILL),
    ],
    ids=str,
)
def test_an_interrupted_run_resumes_to_the_same_bits(trained, stage, number):
    home, tag = trained, f"cut-{number.name.lower()}"
    module, flags = stage_flags(home, stage, tag)
    flags += f" {STEPS} --save-every=4"
    at = random.Random(f"{stage}{number}").randint(5, 8)
    metrics = home / "base" / f"{stage}_checkpoints" / tag / "metrics.jsonl"
    status = interrupt(home, module, flags, metrics, at, number)
    assert status == (130 if number == signal.SIGTERM else -signal.SIGKILL)
    assert "resumed" in run(home, module, f"{flags} --resume")
    assert losses(home, stage, tag) == losses(home, stage, "tiny")
    cut, whole = (tensors(last_step(home, stage, t)) for t in (tag, "tiny"))
    assert cut.keys() == whole.keys()
    assert [name for name in whole if not torch.equal(cut[name], whole[name])] == []


def test_word_vectors_begin_a_new_model_and_not_a_resumed_one(home):
    module, flags = stage_flags(home, "base", "vectors")
    flags += " --tie-word-embeddings --word-vectors=0.1 --save-every=1"
    assert "word vectors: counted" in run(home, module, f"{flags} --num-steps=1")
    weight = load_file(last_step(home, "base", "vectors") / "model.safetensors")
    assert 0.09 < weight["model.embed_tokens.weight"].std() < 0.11
    resumed = run(home, module, f"{flags} --num-steps=2 --resume")
    assert "resumed" in resumed and "word vectors" not in resumed


# ---------------------------------------------------------------- ranks


def train_under_torchrun(
    home: Path, module: str, flags: str, metrics: Path, step: int, flops: float
) -> None:
    """A rank; the first time, rank 1 is killed once `step` is logged. flops: see tests/forked.py"""
    os.environ.update(environment(home))
    hardware.measure_peak_flops = lambda device, dtype: flops
    rank, restarts = (os.environ[name] for name in ("RANK", "TORCHELASTIC_RESTART_COUNT"))
    if (rank, restarts) == ("1", "0"):
        threading.Thread(target=die_at, args=(metrics, step), daemon=True).start()
    run_script(module, flags, home / f"printed-{restarts}-{rank}")


def die_at(metrics: Path, step: int) -> None:
    wait_for_step(metrics, step, multiprocessing.current_process())
    os.kill(os.getpid(), signal.SIGKILL)


def torchrun(function, *arguments) -> None:
    """function(*arguments) on two ranks, which are started again once, by torchrun's own agent; in
    forked processes, because an import of torch takes seconds."""
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, max_restarts=1, run_id="pipeline",
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", start_method="forkserver",
    )  # fmt: skip
    names = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    handlers = [signal.getsignal(name) for name in names]
    try:
        elastic_launch(config, function)(*arguments)
    finally:
        for name, handler in zip(names, handlers, strict=True):
            signal.signal(name, handler)


def start_as_ranks(function, *arguments) -> list:
    """Two processes that run function(rank, *arguments)."""
    return [start(function, rank, *arguments) for rank in range(2)]


def run_as_rank(rank: int, port: int, home: Path, module: str, flags: str, **places) -> None:
    places = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2, **places}
    places |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update(environment(home) | {name: str(value) for name, value in places.items()})
    run_script(module, flags)


def test_two_ranks_give_one_ranks_losses_and_share_checkpoints(trained):
    """Also where one is killed: torchrun starts both again, from the last checkpoint. And where
    one is asked to stop: both save and end."""
    module, flags = stage_flags(trained, "base", "ranks")
    flags = flags.replace("--device-batch-size=4", "--device-batch-size=auto")
    metrics = trained / "base" / "base_checkpoints" / "ranks" / "metrics.jsonl"
    flags_of_all = f"{flags} {STEPS} --save-every=4"
    flops = hardware.measure_peak_flops(torch.device("cpu"), torch.float32)
    torchrun(train_under_torchrun, trained, module, flags_of_all, metrics, 5, flops)
    first, again = ((trained / f"printed-{i}-0").read_text() for i in range(2))
    assert "resumed" not in first and re.search("resumed .* at step (4|8|12)", again), again
    assert "1 micro-batches x 2 ranks x 4 rows" in again
    one, two = losses(trained, "base", "tiny"), losses(trained, "base", "ranks")
    assert [s for s, _ in one] == [s for s, _ in two]
    assert [x for _, x in one] == pytest.approx([x for _, x in two], rel=2e-3)
    # One rank goes on from the two ranks' checkpoint, and two from the one's.
    out = run(trained, module, f"{flags} --num-steps=18 --resume")
    assert "resumed with other ranks: saved with 2, now 1" in out
    processes = start_as_ranks(run_as_rank, *free_ports(1), trained, module, f"{flags} --resume")
    wait_for_step(metrics, 19, processes[1])
    os.kill(processes[1].pid, signal.SIGTERM)
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [130, 130]
    steps = [step for step, _ in losses(trained, "base", "ranks")]
    assert steps == list(range(1, steps[-1] + 1))
    assert last_step(trained, "base", "ranks").name == f"step_{steps[-1]:06d}"


def rehearse_as_rank(rank: int, ports: list[int], home: Path, disk: Path) -> None:
    """Every stage. disk: rank 1's own, used where ranks need no common one."""
    for port, stage in zip(ports, ("base", "base", "mid", "sft", "rl"), strict=True):
        module, flags = stage_flags(home, stage, "rehearsal")
        flags += " --num-steps=2 --fresh"
        places = {}
        if stage == "rl" or port == ports[1]:
            places = {"LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}  # two nodes
            places |= {"NANOCHAT_BASE_DIR": disk} if rank == 1 else {}
            flags += " --local-data --reduce-dtype=bfloat16" if stage == "base" else ""
        run_as_rank(rank, port, home, module, flags, **places)


def test_two_ranks_rehearse_every_stage_with_one_disk_or_two(trained, tmp_path, share_compiled):
    disk = share_compiled(tmp_path / "disk")
    processes = start_as_ranks(rehearse_as_rank, free_ports(5), trained, disk)
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0]
    assert not list(disk.glob("*_checkpoints"))
    for stage in ("base", "mid", "sft", "rl"):
        assert last_step(trained, stage, "rehearsal").name == "step_000002"
    runs = [folder.name for folder in (trained / "base" / "base_checkpoints").glob("rehearsal*")]
    assert len(runs) == 2  # --fresh moved the first aside


# ---------------------------------------------------------------- what a run is used for


def test_a_finished_run_is_not_run_again_nor_overwritten(trained):
    module, flags = stage_flags(trained, "base", "tiny")
    before = last_step(trained, "base", "tiny").stat().st_mtime_ns
    assert "is finished, at step 16" in run(trained, module, f"{flags} {STEPS} --resume")
    refused = run(trained, module, f"{flags} {STEPS}", status=1)
    assert "already holds a run, up to step 16" in refused and "Traceback" not in refused
    assert last_step(trained, "base", "tiny").stat().st_mtime_ns == before


def test_a_diverging_run_names_the_last_good_checkpoint(trained):
    module, flags = stage_flags(trained, "base", "wild")
    run(trained, module, f"{flags} --num-steps=4 --save-every=4")
    wild = f"{flags} --num-steps=40 --resume --matrix-lr=1e30 --grad-clip=0"
    out = run(trained, module, wild, status=1)
    assert re.search(r"DivergedError: step \d+", out) and "Traceback" not in out
    assert "The last good checkpoint" in out and "step_000004" in out
    assert last_step(trained, "base", "wild").name == "step_000004"


def test_evaluations_chat_and_report(trained):
    out = run(trained, "scripts.base_eval", "--eval-tokens=512 --sample-tokens=4 --model-tag=tiny")
    assert re.search(r"val: \d\.\d{4} bits per byte", out)
    tasks = "--tasks=arithmetic|identity|gsm8k --limit=4 --max-tokens=8 --model-tag=tiny"
    out = run(trained, "scripts.chat_eval", tasks)
    assert "gsm8k: not run" in out and re.search(r"arithmetic .*%", out)
    assert run(trained, "scripts.chat_cli", "-p Hi --max-tokens=8 --model-tag=tiny")
    page = (trained / "base" / "report" / "tiny" / "report.md").read_text()  # remade by itself
    assert re.search(r"arithmetic \| .* ± ", page) and "scripts.chat_sft" in page
    out = run(trained, "scripts.report", "--model-tag=tiny")
    assert re.search(r"arithmetic .* ± ", out) and re.search(r"sft .* 16 ", out)
    assert "no compare" not in run(trained, "scripts.tok_eval", "--no-compare")


def test_the_documents_own_task_and_reward_are_learned_and_measured(trained, tmp_path, monkeypatch):
    page = (ROOT / "docs" / "training.md").read_text()
    (code,) = re.findall(r"```python\n(from tasks.task import .*?)```", page, re.S)
    (tmp_path / "my_task.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    learn, ask = re.findall(r"^python -m scripts\.chat_\w+ (.*my_task:Reverse.*)$", page, re.M)
    learn = learn.replace("--num-steps=100", "--num-steps=2")
    flags = f"{QUICK} --no-gate --prompts-per-step=2 --num-samples=2 --eval-problems=2"
    flags += " --eval-samples=2 --parent-tag=tiny --model-tag=own"
    out = run(trained, "scripts.chat_rl", f"{learn} {flags}")
    assert "backwards. -> " in out and "are in training" not in out
    out = run(trained, "scripts.chat_eval", f"{ask} --limit=2 --max-tokens=8 --model-tag=own")
    assert re.search(r"reverse .*%", out)
    report = (trained / "base" / "report" / "own" / "report.md").read_text()
    assert "Runs from the same model" in report and "my_task:Reverse" in report


SNIPPET = """
from nanochat.checkpoint_manager import load_model
from nanochat.common import compute_init
ddp, ddp_rank, ddp_local_rank, ddp_world_size, device = compute_init()
model, tokenizer, meta = load_model("sft", device, phase="eval")
prompt = "<|bos|><|user_start|>What is the capital of France?<|user_end|><|assistant_start|>"
tokens = tokenizer.encode(prompt)                # a prompt that the programmer wrote
response_tokens = list(model.generate(tokens, max_tokens=100, temperature=0.8, top_k=50))
print(tokenizer.decode(response_tokens))
"""


def test_the_snippet_that_documents_quote_runs_verbatim(trained):
    done = run_code(SNIPPET, **environment(trained))
    assert done.returncode == 0, done.stderr
    assert "device: " in done.stdout and len(done.stdout.splitlines()) >= 2


@pytest.mark.parametrize("stage", ["base", "mid", "sft"])
def test_every_stage_loads_in_transformers_as_it_lies(trained, stage):
    transformers = pytest.importorskip("transformers")
    from nanochat.checkpoint_manager import load_model

    folder = last_step(trained, stage, "tiny")
    options = {"trust_remote_code": False}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, use_safetensors=True, dtype=torch.float32, **options
    )
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder, use_fast=True, **options)
    ours, tokenizer, _ = load_model(folder, "cpu", "eval")
    ours.compute_dtype = torch.float32
    text = "import this  # naïve café 12345\n"
    ids = [tokenizer.bos, *tokenizer.encode_ordinary(text)]
    assert their_tokenizer(text).input_ids == ids
    with torch.no_grad():
        a, b = ours(torch.tensor([ids])), theirs(torch.tensor([ids])).logits
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_the_export_of_a_trained_model_answers_as_it_does(trained, tmp_path):
    transformers = pytest.importorskip("transformers")
    from nanochat.checkpoint_manager import load_model
    from nanochat.conversation import render_for_completion
    from nanochat.publishing.export import export

    folder = last_step(trained, "sft", "tiny")
    with proved_here():
        export(folder, tmp_path / "hf_model", "float32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf_model")
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf_model")
    ours, tokenizer, _ = load_model(folder, "cpu", "eval")
    ours.compute_dtype = torch.float32
    for question in ("Hi!", "What is 37 * 12?", "Who are you?"):
        messages = [{"role": "user", "content": question}]
        prompt = render_for_completion({"messages": messages}, tokenizer)
        answer = list(ours.generate(prompt, max_tokens=24, temperature=0))
        ids = their_tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        row = theirs.generate(ids, max_new_tokens=24, do_sample=False)[0].tolist()
        assert row[: len(prompt)] == prompt
        assert row[len(prompt) :][: len(answer)] == answer
        assert set(row[len(prompt) + len(answer) :]) <= set(ours.stop_ids)


@pytest.mark.parametrize(
    "module, flags, expected",
    [
        ("scripts.base_train", "--detph=4", "detph"),
        ("scripts.base_train", "--depth=four", "depth"),
        ("scripts.base_train", "--depth=0", "at least 1 layer"),
        ("scripts.base_train", "--width=0", "width 0: expected at least 1"),
        ("scripts.base_train", "--depth=2 --num-kv-heads=3 --model-tag=x", "nearest that does is"),
        ("scripts.base_train", "--num-steps=1 --target-seconds=5 --depth=2", "one horizon"),
        ("scripts.base_train", "--data=/nowhere/at/all --depth=2 --model-tag=x", "/nowhere/at/all"),
        ("scripts.tok_train", "--vocab-size=1000", "Nearest: 1024"),
        ("scripts.base_train", "--depth=3 --model-tag=tiny --resume", "cannot go on with 3"),
        ("scripts.mid_train", "--base-tag=unknown", "tiny"),
        (
            "scripts.mid_train",
            "--go-on=2 --mixture=identity:1 --val-mixture=identity:1 --model-tag=x",
            "expected 0 to 1",
        ),
        ("scripts.tok_train", "--mixture=arithmatic:1", "arithmetic"),
        ("scripts.chat_sft", "--mixture=arithmatic:1 --model-tag=x", "arithmetic"),
        ("scripts.chat_sft", "--max-tokens=100 --model-tag=x", "1 to the context, 64"),
        ("scripts.chat_sft", "--max-tokens=0 --model-tag=x", "1 to the context, 64"),
        ("scripts.chat_cli", "-p hi --source=rl --model-tag=none", "sft tiny at step"),
        ("scripts.chat_cli", "-p hi --step=7", "at step"),
    ],
)
def test_bad_input_is_told_without_a_traceback(trained, module, flags, expected):
    if module in ("scripts.base_train", "scripts.tok_train") and "--data" not in flags:
        flags += f" --data={trained / 'texts'}"
    code, printed = run_here(trained, module, flags)
    assert expected in printed and "Traceback" not in printed
    assert code == (2 if "detph" in flags or "four" in flags else 1)
