"""Say what is wrong with a published model that prints gibberish, and repair it.

    python -m scripts.doctor ./hf_model --tokenizer ./other_run ./tokenizer.pkl --output-dir ./fixed

Every candidate tokenizer is scored by the bits per byte of text that the weights need with it. One
whose fingerprint the folder records is taken whatever its score. If there is none, nothing is
written, unless --accept-tokenizer takes the best (run.json then says "repaired_from").
"""

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from nanochat.common import CheckpointError, DataError
from nanochat.configurator import cli
from nanochat.publishing.doctor import examine, recorded_fingerprints, repair
from nanochat.publishing.export import check_output
from nanochat.publishing.export_files import TOKENIZER
from nanochat.publishing.tokenizer_search import (
    TEXT_CHARACTERS,
    choose,
    default_text,
    load,
    open_tokenizer,
    search,
)


@dataclass(frozen=True)
class Config:
    folder: tyro.conf.Positional[Path]
    """The published folder, as transformers would load it."""
    tokenizer: tuple[Path, ...] = ()
    """Other tokenizers that may be the right one: files or folders."""
    text: Path | None = None
    """Text like the training data, whose start is scored; default: English prose."""
    output_dir: Path | None = None
    """Write the repaired folder here, proved like an export."""
    overwrite: bool = False
    """Replace an earlier export there."""
    accept_tokenizer: bool = False
    """Take the best tokenizer even if the model was trained with another."""


def read_text(path: Path) -> str:
    """The start of the file; DataError if there is no text in it."""
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(TEXT_CHARACTERS)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} could not be read as text: {error}") from error
    if not text.strip():
        raise DataError(f"{path} holds no text to score with")
    return text


def main(config: Config) -> None:
    folder = config.folder
    if config.output_dir:
        check_output(config.output_dir, config.overwrite)
    text = read_text(config.text) if config.text else default_text()
    problems, model = examine(folder)
    print(f"{folder}: {len(problems) or 'no'} problem(s) in its files")
    for problem in problems:
        print(f"  - {problem}")
    if model is None:
        raise CheckpointError(f"{folder} cannot be read, so no tokenizer is scored; see above")
    sources = {}
    for path in (folder / TOKENIZER, *config.tokenizer):
        try:
            sources[str(path)], reason = open_tokenizer(path, model.config.vocab_size)
        except DataError as error:
            print(f"  left out: {error}")
        else:
            if reason:
                print(f"  {path}: {reason}; its merges are tried with other ids")
    recorded = recorded_fingerprints(folder)
    candidates = search(load(model.weights, model.config), sources, text, recorded)
    table = Table("tokenizer", "variant", "bits/byte")
    for c in candidates:
        table.add_row(c.source, c.variant, f"{c.bits:.3f}")
    Console(width=140).print(table)
    best = choose(candidates, text, recorded, config.accept_tokenizer)
    if config.output_dir:
        model.tokenizer = best.tokenizer
        repair(model, config.output_dir, best.variant, recorded, overwrite=config.overwrite)
        print(f"repaired and proved: {config.output_dir}")
    elif best.variant != "as it is" or best.source != str(folder / TOKENIZER):
        print("--output-dir=FOLDER writes the folder again with this tokenizer")


if __name__ == "__main__":
    cli(main, Config)
