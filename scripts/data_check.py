"""Looks at a text before anything is trained on it: what it holds, its faults, what it is good for.

python -m scripts.data_check ./my_texts
python -m scripts.data_check ./table.parquet --column=body --json
"""

import io
import json
import sys
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.table import Table

from nanochat.common import DataError, choose_dtype, pick_device_type
from nanochat.configurator import cli
from nanochat.data.rows import TABLES, data_files
from nanochat.data.sources import PLAIN, fetched, file_texts, open_source
from nanochat.evaluation.data_check import Part, check, fertility
from nanochat.files import base_dir, user_path
from nanochat.gpt import GPTConfig
from nanochat.hardware import CARDS, peak_flops
from nanochat.report.planning import MEASURED_MFU, flops_per_token, num_params
from nanochat.tokenizer import Tokenizer

DEPTHS, TOKENS_PER_PARAM = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 26, 32), 20
EPOCHS = 4  # text read so often is nearly as good as new text (Muennighoff et al. 2023)
FERTILITY = "tokenizer", "script", "characters", "per token", "tokens per word"
COLUMNS = "depth", "parameters", "epochs", "minutes here", "minutes on an H100"
LARGE = 100_000_000  # characters, from which a tokenizer has 65,536 ids


@dataclass(frozen=True)
class Config:
    data: tyro.conf.Positional[str]
    """A folder or file, or another value of base_train's --data."""
    column: str = "text"
    """Of tables: the one with the text."""
    vocab_size: int | None = None
    """Of the tokenizer that is tried on this text; default: 65,536, or 8,192 for little text."""
    tokenizer: Path | None = None
    """Folder of the tokenizer to compare it with; default: tokenizer/ under the base folder."""
    json: bool = False
    """Print one JSON object, and everything else to stderr."""


def files_of(config: Config) -> Iterable[Part]:
    """Every local file, or every shard, as training reads it; malformed rows are left out."""
    source = open_source(config.data, column=config.column, max_malformed=1.0)
    if config.data == "packaged" or not (path := user_path(config.data)).exists():
        return ((shard.name, shard.read) for shard in fetched([*source.train, *source.val]))
    with redirect_stdout(None):  # open_source has printed it
        files = data_files(path, (*TABLES, *PLAIN)) if path.is_dir() else [path]
    read = partial(file_texts, column=config.column, max_malformed=1.0)
    return ((str(file.relative_to(path.parent)), partial(read, file)) for file in files)


def add_plan(config: Config, report: dict, sample: list[str]) -> None:
    """Adds how a tokenizer of this text compresses it, and another one; and what can be trained."""
    vocab_size = config.vocab_size or (65_536 if report["characters"] > LARGE else 8192)
    held_out, rest = sample, sample
    if len(sample) >= 20:
        held_out, rest = sample[::10], [t for i, t in enumerate(sample) if i % 10]
    tokenizers = {f"new, {vocab_size:,} ids": Tokenizer.train(rest, vocab_size)}
    if (folder := config.tokenizer or base_dir() / "tokenizer").exists():
        tokenizers[str(folder)] = Tokenizer.load(folder)
    else:
        report["notes"] += [f"{folder}: no tokenizer to compare with; tok_train makes one"]
    report["fertility"] = {name: fertility(t, held_out) for name, t in tokenizers.items()}
    new = next(iter(report["fertility"].values())).values()
    characters, tokens = (sum(f[key] for f in new) for key in ("characters", "tokens"))
    report["tokens"] = round(report["characters"] * tokens / characters)
    report["plan"] = plan(report["tokens"], vocab_size)


def plan(tokens: float, vocab_size: int) -> dict:
    """What each depth takes of this text, and of time here and on an H100."""
    device, rows = torch.device(pick_device_type()), []
    peak, source = peak_flops(device, choose_dtype(device)[0])
    peaks = peak, CARDS["H100"].flops
    for depth in DEPTHS:
        model = GPTConfig.from_depth(depth, vocab_size)
        wanted = TOKENS_PER_PARAM * num_params(model)
        minutes = [wanted * flops_per_token(model) / MEASURED_MFU / p / 60 for p in peaks]
        rows.append([depth, num_params(model), wanted / tokens, *minutes])
    here = f"{peak / 1e12:.2f} TFLOP/s, {source}"
    largest = max((row[0] for row in rows if row[2] <= EPOCHS), default=None)
    return {"depth": largest, "machine": here, "columns": COLUMNS, "depths": rows}


def show(report: dict) -> None:
    names = "files", "documents", "characters", "rows without text, left out"
    print("\n".join(f"{report.get(name, 0):,} {name}" for name in names))
    for name in ("scripts", "languages"):
        total = sum(report[name].values())
        shares = {key: count / total for key, count in report[name].items()}
        print(f"{name}: {', '.join(f'{k} {v:.1%}' for k, v in shares.items() if v > 0.0005)}")
    for what, hit in report["findings"].items():
        print("\n    ".join([f"{hit['documents']:,} documents: {what}", *hit["examples"]]))
    print(f"{report['repeated_characters']:,} characters: lines that stand here before")
    print("\n    ".join(["the readers say:", *report["notes"]]))
    rows = [
        [
            name,
            script,
            f["characters"],
            f["characters"] / f["tokens"],
            f["tokens"] / max(1, f["words"]),
        ]
        for name, scripts in report["fertility"].items()
        for script, f in scripts.items()
    ]
    plan = report["plan"]
    few = [row for row in plan["depths"] if row[0] <= 2 * (plan["depth"] or 2)]
    for header, body in ((FERTILITY, rows), (COLUMNS, few)):
        table = Table(*header)
        for row in body:
            table.add_row(*(f"{x:,.2f}" if isinstance(x, float) else str(x) for x in row))
        Console().print(table)
    print(f"about {report['tokens']:,.0f} tokens of the new tokenizer")
    print(f"epochs of this text, minutes for {TOKENS_PER_PARAM} tokens a parameter at the share")
    print(f"{MEASURED_MFU} of the peak that depth 20 reached on an H100; here {plan['machine']}")
    fits = f"--depth={plan['depth']} is the largest that reads it at most {EPOCHS} times"
    print(fits if plan["depth"] else f"little text: --target-tokens={EPOCHS * report['tokens']}")


def main(config: Config) -> None:
    printed = io.StringIO()
    with redirect_stdout(sys.stderr if config.json else sys.stdout):
        with redirect_stdout(printed):
            parts = files_of(config)
        report, sample = check(parts)
        report["notes"][:0] = printed.getvalue().splitlines()
        if not sample:
            raise DataError("\n".join(["no text that training could read", *report["notes"]]))
        add_plan(config, report, sample)
    if config.json:
        print(json.dumps(report, indent=1, ensure_ascii=False))
    else:
        show(report)


if __name__ == "__main__":
    cli(main, Config)
