"""What evaluations measured: CORE, chat tasks with their controls, the tokenizer, samples."""

import json
import re
from pathlib import Path

from nanochat.report.figures import format_number
from nanochat.report.page import Sample, Section, Table
from nanochat.report.plots import bars
from nanochat.report.run import StageRecord, read_json

TOKENIZER_RECORD = "tok_eval.json"  # beside tokenizer.json, written by scripts/tok_eval.py
ANSWERS_A_TASK, LONGEST_SAMPLE = 2, 700

# GPT-2's published figures, to see ours beside them: CORE, and the accuracy in six of its 22 tasks.
GPT2_SOURCE = "karpathy/nanochat, dev/estimate_gpt3_core.ipynb"
GPT2_CORE = {"GPT-2 124M": 0.1139, "GPT-2 355M": 0.1849, "GPT-2 774M": 0.2146, "GPT-2 1.5B": 0.2565}
GPT2_SHOWN = ("GPT-2 124M", "GPT-2 1.5B")
GPT2_TASKS = {  # accuracy of guessing, and of those that are shown
    "hellaswag_zeroshot": (0.25, 0.309, 0.502),
    "lambada_openai": (0.0, 0.323, 0.523),
    "hellaswag": (0.25, 0.308, 0.512),
    "piqa": (0.5, 0.623, 0.725),
    "arc_easy": (0.25, 0.412, 0.595),
    "arc_challenge": (0.25, 0.222, 0.299),
}


def gpt2_centred(model: str) -> dict[str, float]:
    """(accuracy - baseline) / (1 - baseline) of the six tasks.

    Example: gpt2_centred("GPT-2 124M")["piqa"] is (0.623 - 0.5) / 0.5 = 0.246.
    """
    column = 1 + GPT2_SHOWN.index(model)
    return {task: (row[column] - row[0]) / (1 - row[0]) for task, row in GPT2_TASKS.items()}


def names_after(prefix: str, figures: dict) -> list[str]:
    """Example: names_after("core/", {"core/piqa": 0.1, "core": 0.2}) == ["piqa"]"""
    return [key.removeprefix(prefix) for key in figures if key.startswith(prefix)]


def core_section(stages: list[StageRecord]) -> Section:
    """Bars and a table for each stage that CORE was measured of."""
    totals = ", ".join(f"{model} {core}" for model, core in GPT2_CORE.items())
    text = (
        "CORE is the mean over 22 tasks of the accuracy above chance, (accuracy - baseline) / "
        "(1 - baseline): 0 is guessing, 1 is perfect (Li et al. 2024, arXiv:2406.11794). "
        f"Published for comparison: {totals}, and of six of the tasks their accuracies "
        f"({GPT2_SOURCE})."
    )
    known = {model: gpt2_centred(model) for model in GPT2_SHOWN}
    blocks: list = []
    for stage in (stage for stage in stages if "core" in stage.evaluations):
        found = stage.evaluations
        core = found["core"], found.get("core_stderr")
        drawn = [("CORE", *core)]
        rows = [["CORE", "", format_number(core[0], ".4f", core[1]), ""]]
        rows[0] += [f"{GPT2_CORE[model]:.4f}" for model in known]
        tasks = names_after("core/", found)
        tasks.sort(key=lambda task: found[f"core/{task}"], reverse=True)  # noqa: B023
        for task in tasks:
            centred, stderr = found[f"core/{task}"], found.get(f"core_stderr/{task}")
            baseline, centred_stderr = found.get(f"core_baseline/{task}"), None
            if stderr is not None and baseline is not None:
                centred_stderr = stderr / (1 - baseline)
            label = task.removeprefix("bigbench_").replace("_", " ")
            drawn.append((label, centred, centred_stderr))
            rows.append([
                task,
                format_number(found.get(f"core_accuracy/{task}"), ".1%", stderr),
                format_number(centred, ".4f", centred_stderr),
                format_number(found.get(f"core_examples/{task}"), ","),
                *(format_number(figures.get(task), ".3f") for figures in known.values()),
            ])  # fmt: skip
        dots = {
            model: {0: GPT2_CORE[model]}
            | {row: figures[task] for row, task in enumerate(tasks, start=1) if task in figures}
            for model, figures in known.items()
        }
        title = f"CORE of the {stage.name} model by task, with standard errors"
        figure = bars(title, "centred accuracy", f"{stage.tag} {stage.name}", drawn, dots)
        headers = ["task", "accuracy", "centred", "examples", *known]
        caption = f"{stage.tag} {stage.name}, step {stage.step:,}"
        blocks += [[figure], Table(caption, headers, rows)]
    return Section("CORE", [text, *blocks] if blocks else [])


def chat_section(stages: list[StageRecord]) -> Section:
    """Each task in a row, each stage in a column; then what chance and leakage would give."""
    measured = {stage.name: stage.evaluations for stage in stages}
    every = {key: value for found in measured.values() for key, value in found.items()}
    rows = []
    for task in names_after("accuracy/", every):
        counts = [found.get(f"examples/{task}") for found in measured.values()]
        usual = max((count for count in counts if count is not None), default=None)
        cells = [
            format_number(found.get(f"accuracy/{task}"), ".1%", found.get(f"stderr/{task}"))
            + ("" if count in (None, usual) else f" (of {count:,})")
            for found, count in zip(measured.values(), counts, strict=True)
        ]
        chance = format_number(every.get(f"baseline/{task}"), ".1%")
        rows.append([task, *cells, format_number(usual, ","), chance])
    for key in every:
        name, _, task = key.partition("/")
        if name.startswith("pass@") and name != "pass@1":  # which is the accuracy
            cells = [format_number(found.get(key), ".1%") for found in measured.values()]
            rows.append([f"{task} {name}", *cells, "", ""])
    note = "Accuracy ± its standard error."
    if "chatcore" in every:
        note += " ChatCORE is the mean accuracy above chance of the model card's five tasks."
        cells = [
            format_number(found.get("chatcore"), ".4f", found.get("chatcore_stderr"))
            for found in measured.values()
        ]
        rows.append(["ChatCORE", *cells, "", ""])
    blocks = []
    if rows:
        headers = ["task", *measured, "questions", "chance"]
        blocks.append(Table("Accuracy by stage", headers, rows, note))
    if controls := control_rows(measured):
        note = "The control asks the same questions with shuffled choices or wrong tool results."
        blocks.append(Table("Controls", ["task", "true", "control", "difference"], controls, note))
    return Section("Chat tasks", blocks)


def control_rows(measured: dict[str, dict]) -> list[list[str]]:
    """[task and stage, accuracy, that of the control, the difference in points]"""
    rows = []
    for stage, found in measured.items():
        for task in names_after("control/", found):
            accuracy, control = found[f"accuracy/{task}"], found[f"control/{task}"]
            rows.append([
                f"{task}, {stage}",
                format_number(accuracy, ".1%", found.get(f"stderr/{task}")),
                format_number(control, ".1%", found.get(f"control_stderr/{task}")),
                f"{100 * (accuracy - control):+.1f} points",
            ])  # fmt: skip
    return rows


def tokenizer_section(folder: Path, fingerprint: str | None) -> Section:
    """Characters per token by kind of text, if they were measured with the run's own tokenizer."""
    record = read_json(folder / TOKENIZER_RECORD)
    mine = record and record["fingerprint"] == fingerprint
    return Section("Tokenizer", [tokenizer_table(record)] if mine else [])


def tokenizer_table(record: dict) -> Table:
    """record: "vocab_size", and "texts" with "kind", "characters", and "tokens" by tokenizer, ours
    first. Example: 300 characters that are 100 tokens of ours and 110 of another's: ours stands for
    3.000 characters a token, theirs for 2.727; +10.0%."""
    headers = ["text", "characters", f"ours ({record['vocab_size']:,} ids)"]
    others = list(record["texts"][0]["tokens"])[1:]
    for other in others:
        headers += [other, f"against {other}"]
    rows = []
    for text in record["texts"]:
        characters, (ours, *theirs) = text["characters"], text["tokens"].values()
        row = [text["kind"], f"{characters:,}", f"{characters / ours:.3f}"]
        for count in theirs:
            row += [f"{characters / count:.3f}", f"{count / ours - 1:+.1%}"]
        rows.append(row)
    note = "More is better: +10% means that a token of ours stands for 10% more text."
    return Table("Characters per token", headers, rows, note if others else "")


def samples_section(stages: list[StageRecord]) -> Section:
    """Continuations by the stages that have any, and the first answers to each task by the last
    stage that was asked."""
    blocks: list = []
    for stage in stages:
        path = stage.run_folder / f"samples-step{stage.step}.json"
        if path.exists():
            blocks.append(f"Continuations by {stage.tag} {stage.name}:")
            for sample in json.loads(path.read_text(encoding="utf-8")):
                blocks.append(Sample(shortened(sample["prompt"]), shortened(sample["completion"])))
    for stage in reversed(stages):
        paths = sorted((stage.run_folder / "answers").glob(f"*-step{stage.step}.jsonl"))
        for path in paths:
            task = path.name.rpartition("-step")[0]
            blocks.append(f"{task}: first answers by {stage.name}")
            for line in path.read_text(encoding="utf-8").splitlines()[:ANSWERS_A_TASK]:
                answer = json.loads(line)
                prompt = re.sub(r"(\s*<\|\w+\|>\s*)+", "\n", answer["prompt"]).strip()
                verdict = {True: "right", False: "wrong"}.get(answer.get("right"), "")
                completion = shortened(str(answer["completion"]))
                blocks.append(Sample(shortened(prompt), completion, verdict))
        if paths:
            break
    return Section("Samples", blocks)


def shortened(text: str) -> str:
    """subtle: the end is kept, because there the question stands that a long prompt leads to."""
    return text if len(text) <= LONGEST_SAMPLE else "… " + text[-LONGEST_SAMPLE:]
