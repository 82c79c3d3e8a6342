"""The Hugging Face model card of a checkpoint: README.md with metadata, from its own records.

A figure that was not measured of this run is absent. The text around the figures is model_card.md.
"""

from pathlib import Path

from nanochat.data.sources import ALIASES
from nanochat.report.evaluations import chat_section, core_section, names_after
from nanochat.report.page import Section, Table, render_template, sections_to_markdown
from nanochat.report.run import Assumptions, StageRecord, lineage, parameters, stored_assumptions
from nanochat.report.training import cost_section, headline, parameter_table, stage_tables

# Task -> (data set on the hub, its configuration, its split) of what the evaluations ask.
HUB_TASKS = {
    "arc-easy": ("allenai/ai2_arc", "ARC-Easy", "test"),
    "arc-challenge": ("allenai/ai2_arc", "ARC-Challenge", "test"),
    "mmlu": ("cais/mmlu", "all", "test"),
    "gsm8k": ("openai/gsm8k", "main", "test"),
    "humaneval": ("openai/openai_humaneval", "openai_humaneval", "test"),
}
# The data sets that nanochat knows by name; another name may be a folder's, or a private one.
DATASETS = {name: place[0] for name, place in HUB_TASKS.items()} | ALIASES
DATASETS |= {"smoltalk": "HuggingFaceTB/smol-smoltalk"}


def render(checkpoint: Path | str, parity: dict | None = None) -> str:
    """The card of a checkpoint folder, as text; parity: what its export was compared with, shown in
    a section of its own.

    Example: render("~/.cache/nanochat/sft_checkpoints/d20/step_000682").
    """
    stages = lineage(checkpoint)
    return model_card(stages, stored_assumptions(stages[-1].tag), parity)


def model_card(stages: list[StageRecord], assumed: Assumptions, parity: dict | None = None) -> str:
    """The card of the last of `stages`, which are those that led to it."""
    last = stages[-1]
    versions = [stage.run.get("versions", {}).get("torch") for stage in stages]
    commits = [stage.run.get("git_commit", "")[:12] for stage in stages]
    facts = {"Device": [stage.device for stage in stages], "PyTorch": versions}
    facts["nanochat's commit"] = commits
    made = [
        f"{k}: {', '.join(dict.fromkeys(filter(None, v)))}." for k, v in facts.items() if any(v)
    ]
    sections = [
        Section("The model", [shape_table(last.config), parameter_table(last.config)]),
        Section("Training", [*stage_tables(stages), " ".join(made)]),
        core_section(stages),
        chat_section(stages),
        cost_section(stages, assumed),
        Section("Parity of this export", parity_blocks(parity) if parity else []),
    ]
    return render_template(
        "model_card.md",
        metadata=metadata(stages),
        title=name_of(last),
        last=last,
        size=f"{sum(parameters(last.config).values()):,}",
        steps=", then ".join(f"{stage.name} ({stage.step:,} steps)" for stage in stages),
        scores=[fact for fact in headline(stages, assumed) if "CORE" in fact[0]],
        sections=sections_to_markdown(sections),
    )


def name_of(stage: StageRecord) -> str:
    return f"nanochat {stage.tag} ({stage.name})"


def shape_table(config: dict) -> Table:
    rows = {
        "layers": config["num_hidden_layers"],
        "width": config["hidden_size"],
        "attention heads": f"{config['num_attention_heads']} of width {config['head_dim']}",
        "key/value heads": config["num_key_value_heads"],
        "vocabulary": f"{config['vocab_size']:,}",
        "context": f"{config['max_position_embeddings']:,} tokens",
        "position": f"rotary, theta {config['rope_parameters']['rope_theta']:g}",
        "norm": f"RMSNorm without weights, eps {config['rms_norm_eps']:g}; on q and k too",
        "MLP": f"relu², width {config['intermediate_size']:,}",
        "logit soft-cap": config["final_logit_softcapping"] or "none",
        "embeddings": "tied" if config["tie_word_embeddings"] else "untied",
    }
    return Table("", ["", " "], [[k, str(v)] for k, v in rows.items()], numbers=False)


def parity_blocks(parity: dict) -> list:
    text = "Before it was published, this folder was read again and compared with the native model."
    checks = [
        [name.replace("_", " "), str(check["compared"]), str(check["different"])]
        for name, check in parity.get("checks", {}).items()
    ]
    rest = flattened({key: value for key, value in parity.items() if key != "checks"})
    return [
        text,
        *([Table("", ["compared", "number", "different"], checks)] if checks else []),
        Table("", ["of the comparison", "value"], rest, numbers=False),
    ]


def flattened(record: dict, prefix: str = "") -> list[list[str]]:
    """Example: flattened({"a": {"b": 1}, "c": True}) == [["a b", "1"], ["c", "yes"]]."""
    rows = []
    for key, value in record.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, dict):
            rows += flattened(value, f"{name} ")
        elif isinstance(value, bool):
            rows.append([name, "yes" if value else "no"])
        elif isinstance(value, list):
            rows.append([name, ", ".join(map(str, value)) or "none"])
        elif value is not None:
            rows.append([name, f"{value:.3g}" if isinstance(value, float) else str(value)])
    return rows


# ---------------------------------------------------------------- metadata


def metadata(stages: list[StageRecord]) -> str:
    """The card's YAML, written by huggingface_hub, which checks its form."""
    from huggingface_hub import ModelCardData

    last, results = stages[-1], eval_results(stages[-1])
    text = str(stages[0].run.get("config", {}).get("data", ""))
    names = [text]
    for stage in stages:  # "smoltalk:1,gsm8k@./mine:2"
        for part in str(stage.run.get("config", {}).get("mixture", "")).split(","):
            name, _, source = part.strip().partition(":")[0].partition("@")
            names.append(source or name)
    datasets = [DATASETS.get(name, name) for name in names]
    return ModelCardData(
        license="mit",
        language="en" if text in {"packaged", *ALIASES, *ALIASES.values()} else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["nanochat", last.name, *(["conversational"] if last.name != "base" else [])],
        datasets=[d for d in dict.fromkeys(datasets) if d in DATASETS.values()] or None,
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=name_of(last) if results else None,
        eval_results=results or None,
    ).to_yaml()


def eval_results(stage: StageRecord) -> list:
    """What was measured of this very checkpoint, as the hub's model index has it."""
    from huggingface_hub import EvalResult

    found, results = stage.evaluations, []

    def add(dataset: str, name: str, metric: str, value: float, *errors, **where) -> None:
        details = zip(("stderr", "examples"), errors, strict=False)
        details = {key: round(value, 6) for key, value in details if value is not None}
        results.append(
            EvalResult(
                task_type="text-generation",
                task_name="Text generation",
                dataset_type=dataset,
                dataset_name=name,
                metric_type=metric,
                metric_name=metric,
                metric_value=round(value, 6),
                metric_args=details or None,
                **where,
            )
        )

    for task in names_after("accuracy/", found):
        dataset, config, split = HUB_TASKS.get(task, (f"nanochat-{task}", None, None))
        metric = "pass@1" if task == "humaneval" else "accuracy"
        errors = found.get(f"stderr/{task}"), found.get(f"examples/{task}")
        where = {"dataset_config": config, "dataset_split": split}
        add(dataset, task, metric, found[f"accuracy/{task}"], *errors, **where)
    if "chatcore" in found:
        add("chatcore", "ChatCORE", "chatcore", found["chatcore"], found.get("chatcore_stderr"))
    if "core" in found:
        add("core", "CORE (22 tasks)", "core", found["core"], found.get("core_stderr"))
    bits = found.get("bpb/val", found.get("val_bpb") if stage.name == "base" else None)
    if bits is not None:
        add("validation", "validation text of pretraining", "bits per byte", bits)
    return results
