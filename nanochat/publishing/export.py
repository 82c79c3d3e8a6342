"""Publish a checkpoint: a Hugging Face folder, proved against the native model, then pushed.

A checkpoint already is such a folder, under transformers' own names. Exporting leaves out the
optimizer and the state, rounds the weights, adds the model card and the proof.
"""

import json
import re
import shutil
from glob import escape
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError

from nanochat.checkpoint import manifest
from nanochat.checkpoint.hf_config import from_hf, to_hf
from nanochat.checkpoint.mirror import check_arrived
from nanochat.checkpoint.writing import save_tensors
from nanochat.checkpoint_manager import CONFIG, RUN, load_checkpoint
from nanochat.common import CheckpointError, ConfigError, print0, require_package
from nanochat.data.hub import faults
from nanochat.gpt import GPTConfig
from nanochat.publishing import parity
from nanochat.publishing.export_files import (
    CARD,
    COPIED,
    INDEX,
    PARITY,
    changed_since_proof,
    hashes,
    proof_of,
    strangers,
)
from nanochat.publishing.parity import DTYPES
from nanochat.report import model_card

SHARD_BYTES = 5_000_000_000
PROOF = re.compile(r"^## Parity of this export$.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
# A path inside a text, from the root, the home folder or upwards; no part of an address.
PLACE = re.compile(r"(?:file://|(?<![\w/:.~-]))(?:~[\w.-]*|\.\.?)?/[^\s,;:@\"'|]+")
# What transformers reads of a repository: left there by an older upload, it would be mixed in.
LOADED = (".safetensors", ".bin", ".pkl", ".pt", ".py", ".model", ".jinja", "index.json")
LOADED += ("tokens.json", "tokens_map.json", "vocab.json", "merges.txt", "vocab.txt")
LOADED += ("adapter_config.json",)


# ---------------------------------------------------------------- export


def export(
    checkpoint: Path,
    output: Path,
    dtype: str = "bfloat16",
    *,
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
) -> dict:
    """Writes `output`, a Hugging Face folder of the checkpoint, and returns the parity report.

    dtype: what the weights are rounded to. Weights of more than `shard_bytes` become several files.
    The folder is written beside its place, proved in a fresh process (see parity.py), and only then
    renamed. Raises ParityError when it is not the checkpoint's model, CheckpointError when
    something cannot be held by the target, or `output` exists and `overwrite` is not set.

    Example: export(find_checkpoint("sft"), Path("hf_model"))["passed"] is True
    """
    require_package("transformers")  # at once, not when all is written and is to be proved
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
    checkpoint, output = Path(checkpoint), resolved(output)
    manifest.sweep(output.parent, output.name)
    refuse_to_overwrite(output, overwrite)
    weights, config, _, run = load_checkpoint(checkpoint)
    check_exportable(config)
    weights = {name: rounded(name, tensor, dtype) for name, tensor in weights.items()}
    record = {**json.loads((checkpoint / CONFIG).read_text(encoding="utf-8")), "dtype": dtype}
    temporary = manifest.temporary_beside(output)
    try:
        temporary.mkdir(parents=True)
        write_weights(temporary, weights, run["tokenizer_fingerprint"], shard_bytes)
        del weights  # the fresh process holds the model twice
        for name in COPIED:
            shutil.copyfile(checkpoint / name, temporary / name)
        texts = {CONFIG: record, RUN: released_run(run)}
        for name, content in texts.items():
            write_json(temporary / name, content)
        print0(f"loading what was written with transformers, and comparing it with {checkpoint}")
        report = parity.prove(temporary, checkpoint, dtype)
        (temporary / CARD).write_text(card(checkpoint, run, report), encoding="utf-8")
        report["files"] = hashes(temporary)
        write_json(temporary / PARITY, report)
        refuse_to_overwrite(output, overwrite)  # once more: the proof has taken minutes
        if output.exists() and any(output.iterdir()):
            print0(f"{output} is replaced")
        manifest.publish(temporary, output)
    except (OSError, SafetensorError) as error:  # the second: a full disk, as safetensors tells it
        raise CheckpointError(f"{output} could not be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # renamed away already when all went well
    return report


def resolved(output: Path | str) -> Path:
    """The folder to write, links followed; CheckpointError where it cannot be put in its place."""
    try:
        output = Path(output).resolve()
        if output == Path.cwd() or output in Path.cwd().parents:
            raise CheckpointError(
                f"{output} is the folder that this was started in, or above it, and would be moved "
                f"away. Name a folder below it, as in ./hf_model"
            )
        output.exists()  # an OSError for a name that is too long, or a folder that is not readable
    except OSError as error:
        raise CheckpointError(f"{output} cannot be written: {error}") from error
    return output


def write_json(path: Path, record: dict) -> None:
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def refuse_to_overwrite(output: Path, overwrite: bool) -> None:
    """CheckpointError when `output` is there and holds something, unless that may be replaced."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not overwrite:
        raise CheckpointError(
            f"{output} exists and is not empty. Name another folder, or give --overwrite to "
            f"replace it"
        )
    if not (output / CONFIG).is_file() or (output / manifest.MANIFEST).exists():
        raise CheckpointError(
            f"{output} is no exported model (a {CONFIG} and no {manifest.MANIFEST}), so it is not "
            f"replaced, --overwrite or not. Name another folder"
        )
    if strange := strangers(output):
        raise CheckpointError(
            f"{output} also holds {', '.join(strange[:5])}, which no export wrote; replacing the "
            f"folder would delete it. Move it away, or name another folder"
        )


def check_exportable(config: GPTConfig) -> None:
    """CheckpointError for a setting that transformers' class has no place for."""
    if (again := from_hf(to_hf(config))) != config:
        raise CheckpointError(f"config.json cannot hold this model: {again} is not {config}")


def rounded(name: str, tensor: torch.Tensor, dtype: str) -> torch.Tensor:
    """The tensor in `dtype`; CheckpointError when a number is not finite, or not in its range."""
    result = tensor.to(DTYPES[dtype])
    if not bool(result.isfinite().all()):
        count = int((~result.isfinite()).sum())
        raise CheckpointError(
            f"{name} has {count} numbers that are not finite in {dtype}; the largest finite one "
            f"here is {tensor[tensor.isfinite()].abs().max():.3g}. Choose --dtype=bfloat16 or "
            f"float32, or an earlier checkpoint if this one diverged"
        )
    return result


def write_weights(
    folder: Path, weights: dict[str, torch.Tensor], fingerprint: str, shard_bytes: int
) -> None:
    """model.safetensors; or, beyond `shard_bytes`, numbered files and the index that names them."""
    split = split_torch_state_dict_into_shards(weights, max_shard_size=shard_bytes)
    for file, names in split.filename_to_tensors.items():
        save_tensors(folder / file, {name: weights[name] for name in names}, fingerprint)
    if split.is_sharded:
        parameters = sum(tensor.numel() for tensor in weights.values())
        total = {"total_parameters": parameters, **split.metadata}
        places = dict(sorted(split.tensor_to_filename.items()))
        write_json(folder / INDEX, {"metadata": total, "weight_map": places})


def released_run(run: dict) -> dict:
    """run.json as it is published: of a model that was imported, that of its first export."""
    imported = run.get("imported", {}).get("run")
    return imported if imported is not None else without_places(run)


def without_places(value):
    """The record with paths, which name folders of this machine, cut to their ends."""
    if isinstance(value, dict):
        return {key: without_places(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_places(item) for item in value]
    if not isinstance(value, str):
        return value
    if Path(value).is_absolute() and "\n" not in value:  # all of it is one, blanks included
        return end_of_path(value)
    return PLACE.sub(lambda found: end_of_path(found[0]), value)


def end_of_path(path: str) -> str:
    """The last part of a path; the last three of a checkpoint's.

    Example: end_of_path("/home/me/mid_checkpoints/d4/step_9") == "mid_checkpoints/d4/step_9"
    """
    parts = Path(path).parts
    checkpoint = len(parts) > 3 and parts[-3].endswith("_checkpoints")
    return "/".join(parts[-3 if checkpoint else -1 :])


def card(checkpoint: Path, run: dict, report: dict) -> str:
    """The model card; that of an imported model stays, but for what it says of the proof."""
    rendered = model_card.render(checkpoint, report)
    imported = run.get("imported", {}).get("card") or ""
    proofs = [PROOF.search(text) for text in (imported, rendered)]
    if not all(proofs):
        return rendered
    return imported.replace(proofs[0][0], proofs[1][0])


# ---------------------------------------------------------------- push


def check_place(repo_id: str) -> None:
    """CheckpointError unless it has the form user/name, in letters that the hub takes."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise CheckpointError(f"{repo_id!r} is no place on the hub; expected user/name")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise CheckpointError(f"{repo_id!r} is no place on the hub: {error}") from error


def without_token(text: str) -> str:
    """The text, in which an HTTP client may have quoted a header, without the account's token."""
    from huggingface_hub import get_token

    token = get_token()
    return text.replace(token, "(the token)") if token else text


def push(folder: Path, repo_id: str, *, private: bool = False) -> str:
    """Uploads an exported folder to the hub, compares what arrived, and returns its address.

    private: a repository that is made for it is private, and a public one is refused.
    Files of an earlier upload that transformers would read, and that this folder does not have, are
    deleted in the same commit, with a printed line. Interrupted, the same call goes on. Raises
    CheckpointError; the account's token is huggingface_hub's business and is never shown.
    """
    from huggingface_hub import HfApi

    if not proof_of(folder).get("passed"):
        raise CheckpointError(f"{folder} has no {PARITY} that says it passed; export it first")
    if changed := changed_since_proof(folder):
        raise CheckpointError(f"{folder}: {'; '.join(changed[:5])}. Export it again")
    check_place(repo_id)
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    api = HfApi()
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.repo_info(repo_id).private:
            raise CheckpointError(
                f"{repo_id} exists and is public, so nothing was pushed. Name another place, or "
                f"leave --private out"
            )
        there = api.list_repo_files(repo_id)
        stale = [n for n in there if n not in names and "/" not in n and n.endswith(LOADED)]
        if stale:
            print0(f"{repo_id}: deleted, left over from an earlier upload: {', '.join(stale)}")
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=names,
            delete_patterns=[escape(name) for name in stale] or None,
            commit_message="nanochat export",
        )
        arrived = {file.path: file for file in api.get_paths_info(repo_id, names)}
    except (*faults(), ValueError) as error:  # ValueError: what the hub says of a card, a header
        reason = without_token(f"{type(error).__name__}: {error}")
        raise CheckpointError(
            f"{repo_id}: not pushed: {reason}. {folder} is whole; log in "
            f"with `hf auth login` if that is missing, and give the same command again: what "
            f"arrived already is not sent twice"
        ) from error
    for name in names:
        check_arrived(folder / name, arrived.get(name), f"{repo_id}: {name}")
    return str(url)
