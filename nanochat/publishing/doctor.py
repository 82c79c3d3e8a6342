"""What is wrong with the files of a published model, and its repair: written again with the
tokenizer that its weights were trained with (see tokenizer_search.py)."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open

from nanochat.checkpoint_manager import CONFIG, GENERATION, TEMPLATE, hugging_face_records
from nanochat.common import CheckpointError, NanochatError
from nanochat.conversation import chat_template
from nanochat.gpt import GPTConfig
from nanochat.publishing.export import export
from nanochat.publishing.export_files import (
    STRAY,
    TOKENIZER,
    TOKENIZER_CONFIG,
    changed_files,
    read_record,
)
from nanochat.publishing.import_model import (
    ImportedModel,
    read_config,
    read_run,
    read_weights,
    write_native,
)
from nanochat.publishing.import_tokenizer import read_tokenizer_json
from nanochat.tokenizer import Tokenizer

FILES = (CONFIG, GENERATION, TOKENIZER, TOKENIZER_CONFIG, TEMPLATE)


@contextmanager
def collecting(problems: list[str]) -> Iterator[None]:
    """An error of the block becomes one more problem."""
    try:
        yield
    except NanochatError as error:
        problems.append(str(error))


def examine(folder: Path) -> tuple[list[str], ImportedModel | None]:
    """(what is wrong with a published folder, a sentence each; the model without its tokenizer, or
    None if it cannot be read)."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; name one with a published model")
    problems, config, model = [], None, None
    with collecting(problems):
        config = read_config(folder)
        weights, dtype = read_weights(folder, config)
        model = ImportedModel(weights, config, None, read_run(folder, dtype), dtype)
    problems += [f"{name} is missing" for name in FILES if not (folder / name).is_file()]
    problems += [
        f"{path.name} does not belong to a nanochat model, and loaders may read it"
        for path in sorted(folder.iterdir())
        if path.name.endswith(STRAY)
    ]
    with collecting(problems):
        problems += changed_files(folder)
    template = folder / TEMPLATE
    if template.is_file() and template.read_bytes() != chat_template().encode():
        problems.append(f"{TEMPLATE} is not nanochat's: it renders chats in another way")
    if config and (folder / TOKENIZER).is_file():
        with collecting(problems):
            tokenizer = read_tokenizer_json(folder / TOKENIZER, config.vocab_size)
            found = tokenizer.fingerprint
            problems += [
                f"{TOKENIZER} has the fingerprint {found[:12]}, but the weights were trained with "
                f"{expected[:12]}: it is damaged, or another model's"
                for expected in recorded_fingerprints(folder) - {found}
            ]
            problems += id_problems(folder, config, tokenizer)
    return list(dict.fromkeys(problems)), model


def id_problems(folder: Path, config: GPTConfig, tokenizer: Tokenizer) -> list[str]:
    """Special tokens that other files of the folder give other ids than tokenizer.json does, and
    padding on the right, which transformers does by default: answers to a batch would differ."""
    problems = []
    expected = hugging_face_records(config, tokenizer)
    expected[TOKENIZER_CONFIG] = json.loads(tokenizer.texts()[TOKENIZER_CONFIG])
    for where, settings in expected.items():
        record = read_record(folder / where) or {}
        for key in ("bos_token_id", "eos_token_id", "bos_token", "eos_token", "padding_side"):
            found = record.get(key, "right" if key == "padding_side" and record else None)
            found = found.get("content") if isinstance(found, dict) else found
            if key in settings and found not in (None, settings[key]):
                problems.append(f"{where}: {key} is {found!r}, expected {settings[key]!r}")
        if "auto_map" in record:
            problems.append(f"{where}: auto_map asks for code from the repository")
    return problems


def recorded_fingerprints(folder: Path) -> set[str]:
    """Fingerprints of the tokenizer that the weights were trained with, from their metadata."""
    named = set()
    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, "pt") as file:
                named.add((file.metadata() or {}).get("tokenizer_fingerprint"))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is damaged: {error}") from error
    return named - {None}


def repair(
    model: ImportedModel, output: Path, variant: str, recorded: set[str], *, overwrite: bool = False
) -> dict:
    """Exports the model with model.tokenizer to `output`, and returns the parity report.

    variant: what was changed in the tokenizer, for run.json. recorded: the fingerprints in the
    folder; if the tokenizer is another, they stay as "repaired_from".
    """
    fingerprint = model.tokenizer.fingerprint
    change = {"tokenizer_fingerprint": fingerprint, "repaired": variant}
    if recorded and fingerprint not in recorded:
        change["repaired_from"] = ", ".join(sorted(recorded))
    for record in (model.run, model.run["imported"].get("run") or {}):
        record |= change
    with tempfile.TemporaryDirectory(dir=output.absolute().parent, prefix=".repair-") as scratch:
        native = Path(scratch) / "native"
        write_native(native, model, model.run.get("stage", "sft"), "repaired")
        return export(native, output, model.dtype, overwrite=overwrite)
