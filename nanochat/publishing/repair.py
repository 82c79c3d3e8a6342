"""A published folder looked through for what breaks it, and written anew with another tokenizer."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from nanochat.bpe.tokenizer_json import read_parts
from nanochat.checkpoint_manager import CONFIG, GENERATION, RUN, TEMPLATE
from nanochat.common import CheckpointError, DataError, NanochatError
from nanochat.conversation import CHAT_TEMPLATE
from nanochat.gpt import GPTConfig
from nanochat.publishing.export import export, refuse_to_overwrite
from nanochat.publishing.export_files import TOKENIZER, TOKENIZER_CONFIG, changed_since_proof
from nanochat.publishing.import_model import ImportedModel, write_native
from nanochat.publishing.karpathy_checkpoint import read_json
from nanochat.tokenizer import SPECIAL_TOKENS, Tokenizer

FILES = (CONFIG, GENERATION, TOKENIZER, TOKENIZER_CONFIG, TEMPLATE)
STRAY = (".py", ".bin", ".pt", ".pkl", ".model")
STRAY_NAMES = {"added_tokens.json", "special_tokens_map.json", "vocab.json", "merges.txt"}


def collect_error(found: list[str], read: Callable, *arguments):
    """What read(*arguments) returns; or None, and its error is one more finding."""
    try:
        return read(*arguments)
    except NanochatError as error:
        found.append(str(error))
        return None


def findings(folder: Path, config: GPTConfig, weights: dict) -> list[str]:
    """What is wrong with a published folder, a sentence each; [] when nothing was found."""
    found = [f"{name} is missing" for name in FILES if not (folder / name).is_file()]
    for path in sorted(folder.iterdir()):
        if path.suffix in STRAY or path.name in STRAY_NAMES:
            found.append(f"{path.name} does not belong to a nanochat release; loaders may read it")
    found += [
        f"{name} has numbers that are not finite"
        for name, tensor in weights.items()
        if not bool(tensor.isfinite().all())
    ]
    changed = collect_error(found, changed_since_proof, folder) or []
    found += [sentence for sentence in changed if sentence not in found]
    template = folder / TEMPLATE
    if template.is_file() and template.read_bytes() != CHAT_TEMPLATE.encode():
        found.append(f"{TEMPLATE} is not nanochat's: chats are rendered in another way")
    if not (folder / TOKENIZER).is_file():
        return found
    try:
        _, _, ranks, special_ids, _ = read_parts(folder / TOKENIZER)
    except DataError as error:
        return [*found, str(error)]
    found += tokenizer_findings(ranks, special_ids, config.vocab_size)
    found += id_findings(folder, special_ids)
    return found + (collect_error(found, fingerprint_findings, folder) or [])


def tokenizer_findings(ranks: dict, special_ids: dict, vocab_size: int) -> list[str]:
    """Ids that are missing, taken twice or beyond the embedding."""
    found = []
    if missing := [name for name in SPECIAL_TOKENS if name not in special_ids]:
        found.append(f"{TOKENIZER} has no {', '.join(missing)}")
    largest = max(*ranks.values(), *special_ids.values())
    if largest >= vocab_size:
        found.append(f"{TOKENIZER} has id {largest}, the embedding ends at {vocab_size - 1}")
    elif largest < vocab_size - 64:
        found.append(f"{TOKENIZER} ends at id {largest}, the embedding at {vocab_size - 1}")
    if taken := sorted(set(ranks.values()) & set(special_ids.values())):
        found.append(f"{TOKENIZER} gives id {taken[0]} to a special token and to another one")
    return found


def id_findings(folder: Path, special_ids: dict[str, int]) -> list[str]:
    """Special ids that the other files give in another way than tokenizer.json."""
    found: list[str] = []
    bos, end = special_ids.get("<|bos|>"), special_ids.get("<|assistant_end|>")
    config, generation, settings = (
        collect_error(found, read_json, folder / name) or {}
        for name in (CONFIG, GENERATION, TOKENIZER_CONFIG)
    )
    for where, record in ((CONFIG, config), (GENERATION, generation)):
        if record.get("bos_token_id", bos) != bos:
            ids = f"{record['bos_token_id']}, {TOKENIZER} has {bos}"
            found.append(f"{where}: bos_token_id is {ids} for <|bos|>")
        stops = record.get("eos_token_id", end)
        if end not in (stops if isinstance(stops, list) else [stops]):
            found.append(
                f"{where}: eos_token_id is {stops}, {TOKENIZER} has {end} for <|assistant_end|>: "
                f"an answer would not end"
            )
    for name, expected in (("bos_token", "<|bos|>"), ("eos_token", "<|assistant_end|>")):
        token = settings.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if token != expected:
            found.append(f"{TOKENIZER_CONFIG}: {name} is {token!r}, expected {expected!r}")
    decoder = settings.get("added_tokens_decoder", {})
    for number, token in decoder.items() if isinstance(decoder, dict) else [("", decoder)]:
        content = token.get("content") if isinstance(token, dict) else None
        if not isinstance(content, str) or not number.isdecimal():
            what = f"{number!r:.20}: {token!r:.60}"
            found.append(f"{TOKENIZER_CONFIG}: added_tokens_decoder has {what}, no token of an id")
        elif special_ids.get(content, int(number)) != int(number):
            where = f"{TOKENIZER_CONFIG} has {content} at id {number}"
            found.append(f"{where}, {TOKENIZER} at {special_ids[content]}")
    if "auto_map" in config or "auto_map" in settings:
        found.append("auto_map asks for code from the repository")
    return found


def recorded_fingerprints(folder: Path) -> dict[str, str]:
    """{file: fingerprint of the tokenizer that the weights were trained with}: what the weights say
    in their metadata; what run.json says only where they say nothing."""
    named = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                named[path.name] = (file.metadata() or {}).get("tokenizer_fingerprint")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is damaged: {error}") from error
    if not any(named.values()):
        named = {RUN: (read_json(folder / RUN) or {}).get("tokenizer_fingerprint")}
    return {name: found for name, found in named.items() if found and isinstance(found, str)}


def fingerprint_findings(folder: Path) -> list[str]:
    """Whether the weights were trained with another tokenizer than the one beside them."""
    try:
        present = Tokenizer.load(folder).fingerprint
    except NanochatError:
        return []  # said already, or written by another program: nothing to compare
    return [
        f"{name} was trained with tokenizer {named[:12]}, {TOKENIZER} is {present[:12]}: it is the "
        f"tokenizer of another run, or damaged"
        for name, named in recorded_fingerprints(folder).items()
        if named != present
    ]


def check_place(output: Path, overwrite: bool) -> None:
    """CheckpointError unless a repaired folder could be written there."""
    refuse_to_overwrite(output, overwrite)
    parent = next(p for p in output.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        what = "cannot be written to" if parent.is_dir() else "is a file"
        raise CheckpointError(f"{output}: {parent} {what}; name another --output-dir")


def repair(
    published: ImportedModel,
    output: Path,
    spelling: str,
    wanted: set[str],
    *,
    overwrite: bool = False,
) -> dict:
    """Writes `output`, a folder of the weights with published.tokenizer, proved like any export;
    returns the parity report. What the release says of its run stays.

    wanted: the fingerprints that the folder records; another one stays, as "repaired_from".
    """
    fingerprint = published.tokenizer.fingerprint
    changed = {"tokenizer_fingerprint": fingerprint, "repaired": spelling}
    if wanted and fingerprint not in wanted:
        changed["repaired_from"] = ", ".join(sorted(wanted))
    for record in (published.run, published.run["imported"].get("run")):
        if record is not None:
            record |= changed
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{output} could not be written: {error}") from error
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".repair-") as scratch:
        stage = published.run.get("stage", "sft")
        place = {"stage": stage, "tag": "repaired", "step": published.step}
        native = Path(scratch) / "native"
        write_native(native, published, place)
        return export(native, output, published.dtype, overwrite=overwrite)
