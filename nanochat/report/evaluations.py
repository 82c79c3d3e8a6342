"""What evaluations measured: CORE, chat tasks with their controls, the tokenizer, samples."""

import json
import re
from pathlib import Path

from nanochat.files import read_json
from nanochat.report.figures import format_number
from nanochat.report.page import Sample, Section, Table
from nanochat.report.plots import bars
from nanochat.report.run import StageRecord

TOKENIZER_RECORD = "tok_eval.json"  # beside tokenizer.json, written by scripts/tok_eval.py
ANSWERS_A_TASK, LONGEST_SAMPLE = 2, 700

# GPT-2's published figures, to see ours beside them; those of six tasks are centred as ours are.
GPT2 = {
    "GPT-2 124M": {
        "CORE": 0.1139, "hellaswag_zeroshot": 0.079, "lambada_openai": 0.323, "hellaswag": 0.077,
        "piqa": 0.246, "arc_easy": 0.216, "arc_challenge": -0.037,
    },
    "GPT-2 1.5B": {
        "CORE": 0.2565, "hellaswag_zeroshot": 0.336, "lambada_openai": 0.523, "hellaswag": 0.349,
        "piqa": 0.450, "arc_easy": 0.460, "arc_challenge": 0.065,
    },
}  # fmt: skip
CORE_TEXT = (
    "CORE is the mean over 22 tasks of the accuracy above chance, (accuracy - baseline) / "
    "(1 - baseline): 0 is guessing, 1 is perfect (Li et al. 2024, arXiv:2406.11794). GPT-2's "
    "figures are published ones (karpathy/nanochat, dev/estimate_gpt3_core.ipynb)."
)


def names_after(prefix: str, figures: dict) -> list[str]:
    """Example: names_after("core/", {"core/piqa": 0.1, "core": 0.2}) == ["piqa"]"""
    return [key.removeprefix(prefix) for key in figures if key.startswith(prefix)]


def core_section(stages: list[StageRecord], figures: bool = False) -> Section:
    """A table for each stage that CORE was measured of, and the same as bars."""
    blocks: list = []
    for stage in (stage for stage in stages if "core" in stage.evaluations):
        found = stage.evaluations
        scores = {"CORE": (found["core"], found.get("core_stderr"))}  # centred, standard error
        tasks = names_after("core/", found)
        for task in sorted(tasks, key=lambda task: found[f"core/{task}"], reverse=True):
            stderr, baseline = (found.get(f"core_{name}/{task}") for name in ("stderr", "baseline"))
            error = None if None in (stderr, baseline) else stderr / (1 - baseline)
            scores[task] = found[f"core/{task}"], error
        name = f"{stage.tag} {stage.name}"
        title = f"CORE of the {stage.name} model by task, with standard errors"
        rows = []
        for task, (score, error) in scores.items():
            names = ("accuracy", "stderr", "examples")
            accuracy, stderr, examples = (found.get(f"core_{name}/{task}") for name in names)
            row = [task, format_number(accuracy, ".1%", stderr), format_number(score, ".4f", error)]
            others = [format_number(published.get(task), ".3f") for published in GPT2.values()]
            rows.append([*row, format_number(examples, ","), *others])
        headers = ["task", "accuracy", "centred", "examples", *GPT2]
        if figures:
            blocks.append([bars(title, "centred accuracy", name, scores, GPT2)])
        blocks.append(Table(f"{name}, step {stage.step:,}", headers, rows))
    return Section("CORE", [CORE_TEXT, *blocks] if blocks else [])


def chat_tables(measured: dict[str, dict]) -> list[Table]:
    """Each task in a row, each stage in a column; then what chance and leakage would give.

    measured: figures as evaluation.tasks records them, by stage.
    """
    every = {key: value for found in measured.values() for key, value in found.items()}

    def across(figure: str, spec: str, stderr: str = "") -> list[str]:
        return [format_number(m.get(figure), spec, m.get(stderr)) for m in measured.values()]

    rows, controls, note = [], [], "Accuracy ± its standard error."
    for task in names_after("accuracy/", every):
        questions = " / ".join(filter(None, dict.fromkeys(across(f"examples/{task}", ","))))
        chance = format_number(every.get(f"baseline/{task}"), ".1%")
        cells = across(f"accuracy/{task}", ".1%", f"stderr/{task}")
        rows.append([task, *cells, questions, chance])
    for key in every:
        name, _, task = key.partition("/")
        if name.startswith("pass@") and name != "pass@1":  # which is the accuracy
            rows.append([f"{task} {name}", *across(key, ".1%", f"stderr_{key}"), "", ""])
    if "chatcore" in every:
        note += " ChatCORE is the mean accuracy above chance of the model card's five tasks."
        rows.append(["ChatCORE", *across("chatcore", ".4f", "chatcore_stderr"), "", ""])
    for stage, found in measured.items():
        for task in names_after("control/", found):
            true, changed = found[f"accuracy/{task}"], found[f"control/{task}"]
            cells = [format_number(true, ".1%", found.get(f"stderr/{task}"))]
            cells += [format_number(changed, ".1%", found.get(f"control_stderr/{task}"))]
            controls.append([f"{task}, {stage}", *cells, f"{100 * (true - changed):+.1f} points"])
    tables = [Table("Accuracy by stage", ["task", *measured, "questions", "chance"], rows, note)]
    note = "The control asks the same questions with shuffled choices or wrong tool results."
    tables += [Table("Controls", ["task", "true", "control", "difference"], controls, note)]
    return [table for table in tables if table.rows]


def tokenizer_section(folder: Path, fingerprint: str | None) -> Section:
    """Characters per token by kind of text, if they were measured with the run's own tokenizer."""
    path = folder / TOKENIZER_RECORD
    record = read_json(path) if path.exists() else {}
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
            for sample in read_json(path):
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
