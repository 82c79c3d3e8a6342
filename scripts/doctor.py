"""Say what is wrong with a published model that prints gibberish, and write it anew.

    python -m scripts.doctor ./hf_model --tokenizer ./other_run ./tokenizer.pkl --output-dir ./fixed

Every candidate tokenizer is scored by the bits per byte that the weights need with it on text. One
that has the fingerprint which the release records wins outright. Where none has it, nothing is
written: --accept-tokenizer takes the one of the best score (run.json then says "repaired_from").
"""

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from nanochat.common import CheckpointError, DataError
from nanochat.configurator import cli
from nanochat.publishing.doctor import (
    TEXT_CHARACTERS,
    Candidate,
    choose,
    default_text,
    diagnose,
    load,
    open_tokenizer,
)
from nanochat.publishing.export_files import TOKENIZER
from nanochat.publishing.import_model import ImportedModel, read_config, read_weights, recorded
from nanochat.publishing.repair import (
    check_place,
    collect_error,
    findings,
    recorded_fingerprints,
    repair,
)


@dataclass(frozen=True)
class Config:
    folder: tyro.conf.Positional[Path]
    """The published folder, as transformers would load it."""
    tokenizer: tuple[Path, ...] = ()
    """Other tokenizers that may be the right one: files or folders."""
    text: Path | None = None
    """Text like what the model was trained on: the start of this file is scored; default: prose."""
    output_dir: Path | None = None
    """Write the folder here with the tokenizer that fits, proved like an export."""
    overwrite: bool = False
    """Replace an earlier folder there."""
    accept_tokenizer: bool = False
    """Take the best scoring tokenizer though the release was trained with another."""


def candidates(config: Config, vocab_size: int) -> dict:
    """{path: tokenizer} of the folder's own and those named; a line for each that is changed or
    left out."""
    sources = {}
    for path in (config.folder / TOKENIZER, *config.tokenizer):
        try:
            sources[str(path)], changed = open_tokenizer(path, vocab_size)
            if changed:
                print(f"  {path}: {changed}; its merges are tried with other ids")
        except DataError as error:
            print(f"  left out: {error}")
    return sources


def print_table(scored: list[Candidate], control: float) -> None:
    table = Table("tokenizer", "spelling", "bits/byte, text", "bits/byte, chats")
    best_of = {c.source: c for c in reversed(scored)}  # of every tokenizer, however bad
    for c in dict.fromkeys([*scored[:10], *best_of.values()]):
        table.add_row(c.source, c.spelling, f"{c.text:.3f}", f"{c.chat:.3f}")
    table.add_row("control", "the best one, its ids scrambled", f"{control:.3f}", "-")
    Console(width=140).print(table)


def read_text(path: Path) -> str:
    """As much of the file as is scored; DataError where there is nothing to read."""
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(TEXT_CHARACTERS)
            more = bool(file.read(1))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} could not be read as text: {error}") from error
    if not text.strip():
        raise DataError(f"{path} holds no text to score with")
    if more:
        print(f"{path}: the first {TEXT_CHARACTERS:,} characters are scored")
    return text


def examine(config: Config) -> tuple[ImportedModel, set[str]]:
    """(the model, without the tokenizer that fits; fingerprints that its files record), and prints
    what is wrong with the folder. CheckpointError where there is nothing to score or repair."""
    folder, problems = config.folder, []
    settings, raw = read_config(folder)
    read = collect_error(problems, read_weights, folder, settings, raw["tie_word_embeddings"])
    weights, dtype, _ = read or ({}, "", [])
    run = collect_error(problems, recorded, folder, dtype)
    problems += findings(folder, settings, weights)
    problems = list(dict.fromkeys(problems))
    print(f"{folder}: {len(problems) or 'no'} finding(s) in its files")
    for problem in problems:
        print(f"  - {problem}")
    if not weights:
        raise CheckpointError(f"{folder}: its weights make no model, so no tokenizer is scored")
    if config.output_dir and run is None:
        raise CheckpointError(f"{folder}: its records are damaged (see above); mend or remove them")
    if run is None:
        run = {"step": 0}
    named = collect_error([], recorded_fingerprints, folder) or {}
    return ImportedModel(weights, settings, None, run["step"], run, dtype), set(named.values())


def main(config: Config) -> None:
    if config.output_dir:  # at once, not when all is scored
        check_place(config.output_dir.absolute(), config.overwrite)
    text = read_text(config.text) if config.text else default_text()
    published, wanted = examine(config)
    sources = candidates(config, published.config.vocab_size)
    scored, control = diagnose(load(published.weights, published.config), sources, text)
    print_table(scored, control)
    best = choose(scored, text, wanted, config.accept_tokenizer)
    if config.output_dir:
        published.tokenizer = best.tokenizer
        repair(published, config.output_dir, best.spelling, wanted, overwrite=config.overwrite)
        print(f"written with that tokenizer, and proved: {config.output_dir}")
    elif best.spelling != "as it is" or best.source != str(config.folder / TOKENIZER):
        print("--output-dir=FOLDER writes the folder anew with it")


if __name__ == "__main__":
    cli(main, Config)
