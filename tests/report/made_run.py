"""A run whose records were made up, so that every figure of its report can be worked out by hand.

Base: 4 steps of 100 tokens, 36 s from the start of the script to the last record, of which 5 s in
steps; 3,600 joules. SFT: one step of 200 tokens; no meter. The model is tests/tiny_checkpoint.py's.
"""

import json

from tiny_checkpoint import save

SESSION = {
    "command": ["python", "-m", "scripts.base_train", "--depth=2"],
    "device": "NVIDIA H100 80GB HBM3",
    "ranks": 2,
    "nodes": 1,
    "dtype": "bfloat16",
    "flops_per_token": 1000,
    "peak_flops": 4e5,
    "peak_source": "data sheet, H100",
    "cuda": "13.0",
    "versions": {},
    "git_commit": None,
}
HOSTILE = "</div><script>alert('x')</script> & `|` done"
BASE = [
    {"step": 0, "time": 1000.0, "session": SESSION | {"energy_source": "NVML, 2 GPU boards"}},
    {"step": 1, "time": 1010.0, "dt": 2.0, "joules": 1800.0, "loss": 5.0},
    {"step": 2, "time": 1020.0, "dt": 1.0, "loss": 4.0},
    {"step": 2, "time": 1021.0, "val_bpb": 2.5},
    {"step": 3, "time": 1030.0, "dt": 1.0, "joules": 1000.0, "loss": 3.0},
    {"step": 4, "time": 1035.0, "dt": 1.0, "joules": 800.0, "loss": 2.75},
    {"step": 4, "time": 1036.0, "val_bpb": 1.25},
]
CORE = {
    "bpb/val": 1.2345,
    "core": 0.4,
    "core_stderr": 0.0316228,  # piqa's 0.03 / (1 - 0.5), lambada's 0.02: sqrt(0.06^2 + 0.02^2) / 2
    "core/piqa": 0.5,
    "core_accuracy/piqa": 0.75,
    "core_stderr/piqa": 0.03,
    "core_examples/piqa": 1838,
    "core_baseline/piqa": 0.5,
    "core/lambada_openai": 0.3,
    "core_accuracy/lambada_openai": 0.3,
    "core_stderr/lambada_openai": 0.02,
    "core_examples/lambada_openai": 5153,
    "core_baseline/lambada_openai": 0.0,
}
SFT = [
    {"step": 0, "time": 2000.0, "session": SESSION | {"flops_per_token": 2000}},
    {"step": 1, "time": 2018.0, "dt": 8.0, "loss": 1.5, "tokens_computed": 200},
]
CHAT = {
    "accuracy/arc-easy": 0.4375,
    "stderr/arc-easy": 0.03,
    "examples/arc-easy": 273,
    "centred/arc-easy": 0.25,
    "baseline/arc-easy": 0.25,
    "accuracy/gsm8k": 0.1,
    "stderr/gsm8k": 0.02,
    "examples/gsm8k": 1319,
    "centred/gsm8k": 0.1,
    "baseline/gsm8k": 0.0,
    "chatcore": 0.175,
    "chatcore_stderr": 0.0223607,  # arc-easy's 0.03 / 0.75, gsm8k's 0.02: sqrt(0.04^2 + 0.02^2) / 2
    "pass@10/humaneval": 0.125,
    "control/arc-easy": 0.2625,
    "control_stderr/arc-easy": 0.027,
}


def write(folder, stage: str, records: list[dict]) -> None:
    """metrics.jsonl, the steps' speeds and MFU added as the training loop records them."""
    lines = []
    for record in records:
        if "dt" in record:
            record = {"tokens_computed": 100, "tokens": 90, "lr": 1.0, "grad_norm": 1.0, **record}
            speed = record["tokens_computed"] / record["dt"]
            record |= {"tokens_per_second": speed, "mfu": speed * 1000 / 4e5}
        lines.append(json.dumps({"stage": stage, "time": 9000.0, **record}) + "\n")
    (folder / "metrics.jsonl").write_text("".join(lines))


def make_base(evaluated: bool = True):
    """A base model's checkpoint folder; evaluated: with CORE and samples."""
    run = {"config": {"data": "fineweb-edu"}, "data": {"source": "books", "tokens": 1200}}
    run |= {"data_fingerprint": "ab" * 32, "val_bpb": 1.25, "peak_memory_bytes": 2**30}
    folder = save(4, "base", run=run)
    write(folder.parent, "base", [*BASE, {"step": 4, **CORE}] if evaluated else BASE)
    if evaluated:
        samples = [{"prompt": "The capital of France is", "completion": HOSTILE}]
        (folder.parent / "samples-step4.json").write_text(json.dumps(samples))
    return folder


def make_sft(base):
    """The checkpoint of an SFT stage after `base`, evaluated, with one logged answer."""
    mixture = "smoltalk:1,gsm8k@./mine:2,identity@./me.jsonl:5,smoltalk@someone/chats:1"
    config = {"mixture": mixture, "max_tokens": 64}
    folder = save(1, "sft", run={"config": config, "parent": str(base)})
    write(folder.parent, "sft", [*SFT, {"step": 1, **CHAT}])
    answers = folder.parent / "answers"
    answers.mkdir()
    prompt = "<|bos|><|user_start|>What is 1+1?<|user_end|><|assistant_start|>"
    answer = {"index": 0, "prompt": prompt, "completion": HOSTILE, "right": False}
    (answers / "gsm8k-step1.jsonl").write_text(json.dumps(answer) + "\n")
    return folder
