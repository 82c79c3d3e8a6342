"""The Hugging Face model card of a checkpoint: README.md with metadata, from its own records.

A figure that was not measured of this run is absent.
"""

from pathlib import Path

from nanochat.files import write_atomic
from nanochat.report.figures import format_decimal
from nanochat.report.formulas import Assumptions
from nanochat.report.page import Section, Table, block_to_markdown
from nanochat.report.results import chat_section, core_section, names_after
from nanochat.report.run import StageRecord, Totals
from nanochat.report.run_records import lineage, stored_assumptions
from nanochat.report.training import cost_section, parameter_table, stage_table

# Task -> (data set on the hub, its configuration, its split) of what the evaluations ask.
HUB_TASKS = {
    "arc-easy": ("allenai/ai2_arc", "ARC-Easy", "test"),
    "arc-challenge": ("allenai/ai2_arc", "ARC-Challenge", "test"),
    "mmlu": ("cais/mmlu", "all", "test"),
    "gsm8k": ("openai/gsm8k", "main", "test"),
    "humaneval": ("openai/openai_humaneval", "openai_humaneval", "test"),
}
# What a mixture's names stand for, where they stand for data of the hub.
MIXTURE = {name: place[0] for name, place in HUB_TASKS.items()}
MIXTURE |= {"smoltalk": "HuggingFaceTB/smol-smoltalk"}
BASE_DATA = {
    "fineweb-edu": "karpathy/fineweb-edu-100b-shuffle",
    "climbmix": "karpathy/climbmix-400b-shuffle",
}
ENGLISH = {*BASE_DATA, *BASE_DATA.values(), "packaged"}
PUBLIC = {*MIXTURE.values(), *BASE_DATA.values()}


def render(checkpoint: Path | str, parity: dict | None = None) -> str:
    """The card of a checkpoint folder, as text; parity: what its export was compared with, shown in
    a section of its own.

    Example: render("~/.cache/nanochat/sft_checkpoints/d20/step_000682").
    """
    stages = lineage(Path(checkpoint).expanduser())
    return model_card(stages, stored_assumptions(stages[-1].tag), parity)


def write_card(folder: Path | str, parity: dict | None = None, checkpoint: Path | None = None):
    """Writes README.md into `folder`: the card of `checkpoint`, by default of the folder itself."""
    write_atomic(Path(folder) / "README.md", render(checkpoint or folder, parity))


def model_card(stages: list[StageRecord], assumed: Assumptions, parity: dict | None = None) -> str:
    """The card of the last of `stages`, which are those that led to it."""
    last = stages[-1]
    sections = [
        Section("How to use", [usage(last)]),
        Section("The model", [shape_table(last), parameter_table(last.config)]),
        Section("Training", training(stages)),
        core_section(stages),
        chat_section(stages),
        cost_section(stages, Totals(stages, assumed), assumed),
        Section("Parity of this export", parity_tables(parity)),
        Section("Limits", [limits(last)]),
    ]
    parts = [metadata(stages).strip(), f"# {name_of(last)}", description(stages)]
    for section in sections:
        blocks = [b if isinstance(b, str) else block_to_markdown(b) for b in section.blocks]
        if any(blocks):
            parts += [f"## {section.title}", *(block for block in blocks if block)]
    return "\n\n".join(parts) + "\n"


def name_of(stage: StageRecord) -> str:
    return f"nanochat {stage.tag} ({stage.name})"


# ---------------------------------------------------------------- metadata


def metadata(stages: list[StageRecord]) -> str:
    """The YAML between two lines of dashes, written by huggingface_hub, which checks its form."""
    from huggingface_hub import ModelCardData

    last, results = stages[-1], eval_results(stages[-1])
    data = ModelCardData(
        license="mit",
        language="en" if base_data(stages) in ENGLISH else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["nanochat", last.name, *(["conversational"] if last.name != "base" else [])],
        datasets=datasets(stages) or None,
        metrics=sorted({r.metric_type for r in results}) or None,
        model_name=name_of(last) if results else None,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---"


def base_data(stages: list[StageRecord]) -> str:
    """What --data said in pretraining."""
    return str(stages[0].run.get("config", {}).get("data", ""))


def datasets(stages: list[StageRecord]) -> list[str]:
    """The hub's data sets among what the stages were trained on, of those that nanochat itself
    knows: another name may be a folder's, or a private one."""
    found = [BASE_DATA.get(base_data(stages), base_data(stages))]
    for stage in stages:
        for part in str(stage.run.get("config", {}).get("mixture", "")).split(","):
            name, _, source = part.strip().partition(":")[0].partition("@")
            found.append(source or MIXTURE.get(name, ""))
    return list(dict.fromkeys(name for name in found if name in PUBLIC))


def eval_results(stage: StageRecord) -> list:
    """What was measured of this very checkpoint, as the hub's model index has it."""
    from huggingface_hub import EvalResult

    measured, results = stage.evaluations, []

    def add(dataset, metric, value, *, config=None, split=None, error=None, count=None) -> None:
        details = {"stderr": error, "examples": count}
        details = {k: round(v, 6) for k, v in details.items() if v is not None}
        kind, name = dataset if isinstance(dataset, tuple) else (dataset, dataset)
        results.append(
            EvalResult(
                task_type="text-generation",
                task_name="Text generation",
                dataset_type=kind,
                dataset_name=name,
                dataset_config=config,
                dataset_split=split,
                metric_type=metric,
                metric_name=metric,
                metric_value=round(value, 6),
                metric_args=details or None,
            )
        )

    for task in names_after("accuracy/", measured):
        hub, config, split = HUB_TASKS.get(task, (f"nanochat-{task.split()[0]}", None, None))
        metric = "pass@1" if task == "humaneval" else "accuracy"
        error, count = measured.get(f"stderr/{task}"), measured.get(f"examples/{task}")
        value, name = measured[f"accuracy/{task}"], (hub, task)
        add(name, metric, value, config=config, split=split, error=error, count=count)
    if "chatcore" in measured:
        add(
            ("chatcore", "ChatCORE"),
            "chatcore",
            measured["chatcore"],
            error=stage.chatcore_stderr(),
        )
    if "core" in measured:
        add(("core", "CORE (22 tasks)"), "core", measured["core"], error=stage.core_stderr())
    bits = measured.get("bpb/val", measured.get("val_bpb") if stage.name == "base" else None)
    if bits is not None:
        add(("validation", "validation text of pretraining"), "bits per byte", bits)
    return results


# ---------------------------------------------------------------- sections


def description(stages: list[StageRecord]) -> str:
    last = stages[-1]
    total = parameter_table(last.config).rows[-1][1]
    kind = "language model" if last.name == "base" else "chat model"
    steps = ", then ".join(f"{s.name} ({s.step:,} steps)" for s in stages)
    best = []
    core = next((s for s in reversed(stages) if "core" in s.evaluations), None)
    if core:
        value = format_decimal(core.evaluations["core"], core.core_stderr())
        best.append(f"CORE of its {core.name} stage: {value}.")
    if "chatcore" in last.evaluations:
        best.append(
            f"ChatCORE: {format_decimal(last.evaluations['chatcore'], last.chatcore_stderr())}."
        )
    text = (
        f"A {kind} of {total} parameters, trained from raw text by nanochat: {steps}. It loads in "
        "`transformers` without custom code. Every figure below was measured by the run that made "
        "it; what was not measured is not here."
    )
    return " ".join([text, *best])


def shape_table(stage: StageRecord) -> Table:
    config = stage.config
    rows = [
        ["layers", config["num_hidden_layers"]],
        ["width", config["hidden_size"]],
        ["attention heads", f"{config['num_attention_heads']} of width {config['head_dim']}"],
        ["key/value heads", config["num_key_value_heads"]],
        ["vocabulary", f"{config['vocab_size']:,}"],
        ["context", f"{config['max_position_embeddings']:,} tokens"],
        ["position", f"rotary, theta {config['rope_parameters']['rope_theta']:g}"],
        ["norm", f"RMSNorm without weights, eps {config['rms_norm_eps']:g}; on q and k too"],
        ["MLP", f"relu², width {config['intermediate_size']:,}"],
        ["logit soft-cap", config["final_logit_softcapping"] or "none"],
        ["embeddings", "tied" if config["tie_word_embeddings"] else "untied"],
    ]
    return Table("", ["", " "], [[name, str(value)] for name, value in rows], numbers=False)


def training(stages: list[StageRecord]) -> list:
    """The table by stage, and what it ran on."""
    devices = dict.fromkeys(stage.device for stage in stages if stage.device)
    torch = dict.fromkeys(s.run.get("versions", {}).get("torch") for s in stages)
    commits = dict.fromkeys((s.run.get("git_commit") or "")[:12] for s in stages)
    facts = {"Device": devices, "PyTorch": torch, "nanochat's commit": commits}
    lines = [f"{k}: {', '.join(filter(None, v))}." for k, v in facts.items() if any(v)]
    table = [stage_table(stages)] if any(stage.steps for stage in stages) else []
    return [*table, " ".join(lines)]


def flattened(record: dict, before: str = "") -> list[tuple[str, str]]:
    """Example: flattened({"a": {"b": 1}, "c": True}) == [("a b", "1"), ("c", "yes")]."""
    rows = []
    for key, value in record.items():
        name = f"{before}{key}".replace("_", " ")
        if isinstance(value, dict):
            rows += flattened(value, f"{name} ")
        elif isinstance(value, bool):
            rows.append((name, "yes" if value else "no"))
        elif isinstance(value, list):
            rows.append((name, ", ".join(map(str, value)) or "none"))
        elif value is not None:
            rows.append((name, f"{value:.3g}" if isinstance(value, float) else str(value)))
    return rows


def parity_tables(parity: dict | None) -> list:
    if not parity:
        return []
    text = "Before it was published, this folder was read again and compared with the native model."
    checks = [
        [name.replace("_", " "), *(str(found.get(k, "")) for k in ("compared", "different"))]
        for name, found in parity.get("checks", {}).items()
    ]
    rows = [list(row) for row in flattened({k: v for k, v in parity.items() if k != "checks"})]
    tables = [Table("", ["compared", "number", "different"], checks)] if checks else []
    return [text, *tables, Table("", ["of the comparison", "value"], rows, numbers=False)]


def usage(stage: StageRecord) -> str:
    """Both ways to run it: transformers, and nanochat itself."""
    chat = """messages = [{"role": "user", "content": "What is the capital of France?"}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
).to(device)"""
    plain = 'inputs = tokenizer("The capital of France is", return_tensors="pt").to(device)'
    prompt = "<|bos|><|user_start|>What is the capital of France?<|user_end|><|assistant_start|>"
    if stage.name == "base":
        prompt = "<|bos|>The capital of France is"
    return f'''```python
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

model_id = "."  # this folder, or the name of the repository that it was published as
device = "cuda" if torch.cuda.is_available() else "cpu"
tokenizer = AutoTokenizer.from_pretrained(model_id, use_fast=True, trust_remote_code=False)
model = AutoModelForCausalLM.from_pretrained(
    model_id, trust_remote_code=False, use_safetensors=True,
    torch_dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32,
).to(device)
{plain if stage.name == "base" else chat}
output = model.generate(**inputs, max_new_tokens=100, do_sample=True, temperature=0.8, top_k=50)
print(tokenizer.decode(output[0, inputs.input_ids.shape[1]:], skip_special_tokens=True))
```

With nanochat, where the checkpoint was made:

```python
from nanochat.checkpoint_manager import load_model
from nanochat.common import compute_init
ddp, ddp_rank, ddp_local_rank, ddp_world_size, device = compute_init()
model, tokenizer, meta = load_model("{stage.name}", device, phase="eval", model_tag="{stage.tag}")
prompt = "{prompt}"
tokens = tokenizer.encode(prompt)  # a prompt that the programmer wrote: markup is honoured here
response_tokens = list(model.generate(tokens, max_tokens=100, temperature=0.8, top_k=50))
print(tokenizer.decode(response_tokens))
```'''


def limits(stage: StageRecord) -> str:
    lines = [
        "A model of this size states false things fluently: check what it says.",
        f"It sees {stage.config['max_position_embeddings']:,} tokens at a time, and keeps nothing "
        "from one conversation to the next.",
        "It repeats the biases of the text that it was trained on, was not trained to refuse "
        "harmful requests, and was not tested for safety.",
    ]
    if stage.name == "base":
        lines.append("It continues text; it was not trained to follow instructions or to chat.")
    else:
        lines.append("Tool calls (`<|python_start|>`) are answered by nanochat's engine; in other "
                     "programs the model waits for output that nobody gives.")  # fmt: skip
    return "\n".join(f"- {line}" for line in lines)
