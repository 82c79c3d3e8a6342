"""The Hugging Face model card of a checkpoint: README.md with metadata, from its own records.

A figure that was not measured of this run is absent. The text around the figures is model_card.md.
"""

from pathlib import Path

from nanochat.data.sources import ALIASES
from nanochat.report.evaluations import chat_tables, core_section, names_after
from nanochat.report.page import (
    Section,
    Table,
    block_to_markdown,
    render_template,
    sections_to_markdown,
)
from nanochat.report.reinforcement import rl_section
from nanochat.report.run import StageRecord, lineage, parameters
from nanochat.report.training import (
    cost_section,
    headline,
    parameter_table,
    software_table,
    stage_tables,
)

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
    """The card of a checkpoint folder, as text; parity: the report of its export's comparison.

    Example: render("~/.cache/nanochat/sft_checkpoints/d20/step_000682").
    """
    return model_card(lineage(checkpoint), parity)


def model_card(stages: list[StageRecord], parity: dict | None = None) -> str:
    """The card of the last of `stages`, which are those that led to it."""
    last = stages[-1]
    sections = [
        Section("Training", [*stage_tables(stages), software_table(stages)]),
        core_section(stages),
        Section("Chat tasks", chat_tables({stage.name: stage.evaluations for stage in stages})),
        rl_section(stages),
        cost_section(stages),
        Section("Parity of this export", parity_blocks(parity) if parity else []),
    ]
    return render_template(
        "model_card.md",
        metadata=metadata(stages),
        title=title(last),
        last=last,
        c=last.config,
        size=sum(parameters(last.config).values()),
        parameters=block_to_markdown(parameter_table(last.config)),
        steps=", then ".join(f"{stage.name} ({stage.step:,} steps)" for stage in stages),
        scores=[fact for fact in headline(stages) if "CORE" in fact[0]],
        sections=sections_to_markdown(sections),
    )


def title(stage: StageRecord) -> str:
    return f"nanochat {stage.tag} ({stage.name})"


def parity_blocks(parity: dict) -> list:
    checks = [
        [name.replace("_", " "), str(check["compared"]), str(check["different"])]
        for name, check in parity["checks"].items()
    ]
    rows = []
    for key, value in parity.items():
        if key not in ("checks", "differences"):
            for name, figure in value.items() if isinstance(value, dict) else [("", value)]:
                text = f"{figure:.3g}" if isinstance(figure, float) else str(figure)
                rows.append([f"{key} {name}".strip().replace("_", " "), text])
    return [
        "Before it was published, this folder was read again and compared with the native model.",
        Table("", ["compared", "number", "different"], checks),
        Table("", ["of the comparison", "value"], rows, numbers=False),
    ]


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
        model_name=title(last) if results else None,
        eval_results=results or None,
    ).to_yaml()


def eval_results(stage: StageRecord) -> list:
    """What was measured of this very checkpoint, as the hub's model index has it."""
    from huggingface_hub import EvalResult

    found = stage.evaluations
    bits = "val_bpb" if stage.name == "base" and "bpb/val" not in found else "bpb/val"
    measured = [  # data set's type, configuration, split and name, metric, where it is recorded
        ("chatcore", None, None, "ChatCORE", "chatcore", "chatcore", "chatcore_stderr"),
        ("core", None, None, "CORE (22 tasks)", "core", "core", "core_stderr"),
        ("validation", None, None, "validation text of pretraining", "bits per byte", bits, ""),
    ]
    for task in names_after("accuracy/", found):
        place = HUB_TASKS.get(task, (f"nanochat-{task.split()[0]}", None, None))
        metric = "pass@1" if task == "humaneval" else "accuracy"
        measured.append((*place, task, metric, f"accuracy/{task}", f"stderr/{task}"))
    results = []
    for dataset, config, split, name, metric, figure, stderr in measured:
        if figure in found:
            details = {"stderr": found.get(stderr), "examples": found.get(f"examples/{name}")}
            details = {key: round(value, 6) for key, value in details.items() if value is not None}
            result = EvalResult(
                task_type="text-generation",
                task_name="Text generation",
                dataset_type=dataset,
                dataset_config=config,
                dataset_split=split,
                dataset_name=name,
                metric_type=metric,
                metric_name=metric,
                metric_value=round(found[figure], 6),
                metric_args=details or None,
            )
            results.append(result)
    return results
