"""What is wrong with the files of a published model, and its repair: written again with the
tokenizer that its weights were trained with (see tokenizer_search.py)."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open

from nanochat.bpe.tokenizer_json import read_parts
from nanochat.checkpoint_manager import CONFIG, GENERATION, RUN, TEMPLATE
from nanochat.common import CheckpointError, NanochatError
from nanochat.conversation import CHAT_TEMPLATE
from nanochat.publishing.export import export
from nanochat.publishing.export_files import TOKENIZER, TOKENIZER_CONFIG, changed_files, read_json
from nanochat.publishing.import_model import (
    ImportedModel,
    check_finite,
    read_config,
    read_run,
    read_weights,
    write_native,
)
from nanochat.publishing.import_tokenizer import read_tokenizer_json
from nanochat.tokenizer import Tokenizer

FILES = (CONFIG, GENERATION, TOKENIZER, TOKENIZER_CONFIG, TEMPLATE)
STRAY = (".py", ".bin", ".pt", ".pkl", ".model", "tokens.json", "tokens_map.json")
STRAY += ("vocab.json", "merges.txt")


@contextmanager
def collecting(problems: list[str]) -> Iterator[None]:
    """An error of the block becomes one more problem."""
    try:
        yield
    except NanochatError as error:
        problems.append(str(error))


def examine(folder: Path) -> tuple[list[str], ImportedModel | None]:
    """(what is wrong with a published folder, a sentence each; the model without its tokenizer).

    The model is None if it cannot be read; the problems say why.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; name one with a published model")
    problems, model = [], None
    with collecting(problems):
        config, tied = read_config(folder)
        weights, dtype = read_weights(folder, config, tied)
        model = ImportedModel(weights, config, None, read_run(folder, dtype), dtype)
        check_finite(weights, folder)
    problems += [f"{name} is missing" for name in FILES if not (folder / name).is_file()]
    problems += [
        f"{path.name} does not belong to a nanochat model, and loaders may read it"
        for path in sorted(folder.iterdir())
        if path.name.endswith(STRAY)
    ]
    with collecting(problems):
        problems += changed_files(folder)
    template = folder / TEMPLATE
    if template.is_file() and template.read_bytes() != CHAT_TEMPLATE.encode():
        problems.append(f"{TEMPLATE} is not nanochat's: it renders chats in another way")
    if (folder / TOKENIZER).is_file():
        with collecting(problems):
            problems += id_problems(folder, read_parts(folder / TOKENIZER)[1])
        with collecting(problems):
            if model:
                read_tokenizer_json(folder / TOKENIZER, model.config.vocab_size)
        with collecting(problems):
            found = Tokenizer.load(folder).fingerprint
            problems += [
                f"{TOKENIZER} has the fingerprint {found[:12]}, but the weights were trained with "
                f"{expected[:12]}: it is damaged, or another model's"
                for expected in recorded_fingerprints(folder)
                if expected != found
            ]
    return list(dict.fromkeys(problems)), model


def id_problems(folder: Path, special_ids: dict[str, int]) -> list[str]:
    """Special tokens that other files give other ids than tokenizer.json does."""
    problems: list[str] = []
    bos, end = special_ids.get("<|bos|>"), special_ids.get("<|assistant_end|>")
    config, generation, settings = (
        read_json(folder / name) or {} for name in (CONFIG, GENERATION, TOKENIZER_CONFIG)
    )
    for where, record in ((CONFIG, config), (GENERATION, generation)):
        if (found := record.get("bos_token_id", bos)) != bos:
            problems.append(f"{where}: bos_token_id is {found}, {TOKENIZER} has {bos} for <|bos|>")
        stops = record.get("eos_token_id", end)
        if end not in (stops if isinstance(stops, list) else [stops]):
            problems.append(
                f"{where}: eos_token_id is {stops}, {TOKENIZER} has {end} for <|assistant_end|>: "
                f"an answer would not end"
            )
    for name, expected in (("bos_token", "<|bos|>"), ("eos_token", "<|assistant_end|>")):
        token = settings.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if token != expected:
            problems.append(f"{TOKENIZER_CONFIG}: {name} is {token!r}, expected {expected!r}")
    try:
        for number, token in settings.get("added_tokens_decoder", {}).items():
            name = token["content"]
            if (expected := special_ids.get(name, int(number))) != int(number):
                problems.append(
                    f"{TOKENIZER_CONFIG} has {name} at id {number}, {TOKENIZER} at {expected}"
                )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        problems.append(f"{TOKENIZER_CONFIG}: added_tokens_decoder is damaged: {error!r:.60}")
    if "auto_map" in settings:
        problems.append(f"{TOKENIZER_CONFIG}: auto_map asks for code from the repository")
    return problems


def recorded_fingerprints(folder: Path) -> set[str]:
    """Fingerprints of the tokenizer that the weights were trained with, from their metadata, or
    from run.json if they have none."""
    named = set()
    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, "pt") as file:
                named.add((file.metadata() or {}).get("tokenizer_fingerprint"))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is damaged: {error}") from error
    if not any(named):
        named = {(read_json(folder / RUN) or {}).get("tokenizer_fingerprint")}
    return {name for name in named if name and isinstance(name, str)}


def repair(
    model: ImportedModel,
    output: Path,
    variant: str,
    recorded: set[str],
    *,
    overwrite: bool = False,
) -> dict:
    """Exports the model with model.tokenizer to `output`, and returns the parity report.

    variant: what was changed in the tokenizer, for run.json, which otherwise stays. recorded: the
    fingerprints in the folder; if the tokenizer is another, they stay as "repaired_from".
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
