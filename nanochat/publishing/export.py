"""Publish a checkpoint: a Hugging Face folder, proved against the native model, then pushed.

A checkpoint already is such a folder, under transformers' own names. Exporting leaves out the
optimizer and the state, rounds the weights, and adds the model card and the proof.
"""

import re
import shutil
import tempfile
from glob import escape
from pathlib import Path

import torch
from safetensors import SafetensorError

from nanochat.checkpoint import manifest
from nanochat.checkpoint.writing import save_tensors
from nanochat.checkpoint_manager import RUN, WEIGHTS, as_json, hugging_face_texts, load_checkpoint
from nanochat.common import DTYPES, CheckpointError, ConfigError, print0, require_package
from nanochat.data.hub import faults
from nanochat.gpt import HEAD
from nanochat.publishing import parity
from nanochat.publishing.export_files import CARD, PARITY, STRAY, changed_files, read_record
from nanochat.publishing.mirror import upload
from nanochat.report import model_card

PROOF = re.compile(r"^## Parity of this export$.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
# A path in a text: from the root, the home folder or upwards; not part of a URL.
LOCAL_PATH = re.compile(r"(?:file://|(?<![\w/:.~-]))(?:~[\w.-]*|\.\.?)?/[^\s,;:@\"'|]+")
# What transformers reads in a repository: if an older upload left it, it would be mixed in.
LOADED = (".safetensors", ".jinja", "index.json", *STRAY)


# ---------------------------------------------------------------- export


def export(
    checkpoint: Path, output: Path, dtype: str = "bfloat16", *, overwrite: bool = False
) -> dict:
    """Writes `output`, a Hugging Face folder of the checkpoint, and returns the parity report.

    dtype: what the weights are rounded to. overwrite: see check_output. The folder gets its name
    once it is proved (see parity.py); ParityError if it is not the same model, CheckpointError if
    it cannot be written.

    Example: export(find_checkpoint("sft"), Path("hf_model"))["passed"] is True
    """
    require_package("transformers")
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
    checkpoint, output = Path(checkpoint), Path(output).resolve()
    manifest.sweep(output.parent, output.name)
    check_output(output, overwrite)
    weights, config, tokenizer, run = load_checkpoint(checkpoint)
    if config.tie_word_embeddings:
        del weights[HEAD]  # it is the embedding
    weights = {name: rounded(name, tensor, dtype) for name, tensor in weights.items()}
    temporary = manifest.temporary_beside(output)
    try:
        temporary.mkdir()
        save_tensors(temporary / WEIGHTS, weights, run["tokenizer_fingerprint"])
        del weights  # the fresh process holds the model twice
        texts = hugging_face_texts(config, tokenizer, dtype=dtype)
        write_texts(temporary, texts | as_json({RUN: public_record(run)}))
        print0(f"loading what was written with transformers, and comparing it with {checkpoint}")
        report = parity.prove(temporary, checkpoint, dtype)
        write_texts(temporary, as_json({PARITY: report}) | {CARD: card(checkpoint, run, report)})
        manifest.write_manifest(temporary, {})
        check_output(output, overwrite)  # again: the proof took minutes
        manifest.publish(temporary, output)
    except (OSError, SafetensorError) as error:  # SafetensorError: a full disk
        raise CheckpointError(f"{output} could not be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # already renamed if all went well
    return report


def check_output(output: Path, overwrite: bool) -> None:
    """CheckpointError unless the folder `output` is new or empty or, with `overwrite`, an earlier
    export without any other files."""
    output = Path(output).resolve()
    if output == Path.cwd() or any((p / manifest.MANIFEST).is_file() for p in output.parents):
        raise CheckpointError(
            f"{output} is the current folder, or inside a checkpoint or an export; name another"
        )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}."):
            pass  # the folder can be written to
        there = {path.name for path in output.iterdir()} if output.exists() else set()
    except OSError as error:
        raise CheckpointError(f"{output} could not be written: {error}") from error
    if there and not overwrite:
        raise CheckpointError(
            f"{output} exists and is not empty. Name another folder, or replace an earlier export "
            f"with --overwrite"
        )
    files = manifest.read_manifest(output)["files"] if PARITY in there else {}
    if other := sorted(there - {manifest.MANIFEST, *files}):
        raise CheckpointError(
            f"{output} is not replaced: it holds {', '.join(other[:5])}, which no export wrote. "
            f"Name another folder"
        )


def rounded(name: str, tensor: torch.Tensor, dtype: str) -> torch.Tensor:
    """The tensor in `dtype`; CheckpointError if that leaves a number that is not finite."""
    result = tensor.to(DTYPES[dtype])
    if count := int((~result.isfinite()).sum()):
        raise CheckpointError(
            f"{name} has {count} numbers that are not finite in {dtype}. Choose --dtype=bfloat16 "
            f"or float32, or an earlier checkpoint if this one diverged"
        )
    return result


def write_texts(folder: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def public_record(run: dict) -> dict:
    """run.json without local paths; for an imported model, the record that it came with."""
    return run.get("imported", {}).get("run") or without_paths(run)


def without_paths(value):
    """The record with each local path cut to its last part, or to the last three of a checkpoint's.

    Example: without_paths("/home/me/mid_checkpoints/d4/step_9") == "mid_checkpoints/d4/step_9"
    """

    def end_of_path(path: str) -> str:
        parts = Path(path).parts
        in_checkpoint = len(parts) > 3 and parts[-3].endswith("_checkpoints")
        return "/".join(parts[-3 if in_checkpoint else -1 :])

    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    if not isinstance(value, str):
        return value
    if Path(value).is_absolute() and "\n" not in value:  # a path as a whole, even with spaces
        return end_of_path(value)
    return LOCAL_PATH.sub(lambda match: end_of_path(match[0]), value)


def card(checkpoint: Path, run: dict, report: dict) -> str:
    """The model card; an imported model keeps its own, with this export's section on parity."""
    rendered = model_card.render(checkpoint, report)
    imported = run.get("imported", {}).get("card") or ""
    before, now = PROOF.search(imported), PROOF.search(rendered)
    return imported.replace(before[0], now[0]) if before and now else rendered


# ---------------------------------------------------------------- push


def check_repo_id(repo_id: str) -> None:
    """CheckpointError unless it is user/name, in characters that the hub allows."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo_id)
        if repo_id.count("/") != 1:
            raise HFValidationError("it has no user")
    except HFValidationError as error:
        raise CheckpointError(f"{repo_id!r} is not user/name on the hub: {error}") from error


def push(folder: Path, repo_id: str, *, private: bool = False) -> str:
    """Uploads an exported folder to the hub, verifies what arrived, and returns its URL.

    private: a public repository is refused. Files of an earlier upload that transformers would read
    are deleted in the same commit, with a printed line. After an interruption the same call
    resumes. Raises CheckpointError, which never shows the account's token.
    """
    from huggingface_hub import HfApi, get_token

    if not (read_record(folder / PARITY) or {}).get("passed"):
        raise CheckpointError(f"{folder} has no {PARITY} that says it passed; export it first")
    manifest.read_manifest(folder)
    if changed := changed_files(folder):
        raise CheckpointError(f"{folder}: {'; '.join(changed[:5])}. Export it again")
    check_repo_id(repo_id)
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    api = HfApi()
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.repo_info(repo_id).private:
            raise CheckpointError(
                f"{repo_id} exists and is public: nothing was pushed. Name another, or leave out "
                f"--private"
            )
        there = api.list_repo_files(repo_id)
        stale = [n for n in there if n not in names and "/" not in n and n.endswith(LOADED)]
        if stale:
            print0(f"{repo_id}: deleted, left over from an earlier upload: {', '.join(stale)}")
        options = {"delete_patterns": [escape(name) for name in stale] or None}
        upload(folder, names, repo_id, commit_message="nanochat export", **options)
    except (*faults(), ValueError) as error:  # ValueError: a card or a token that is not valid
        reason = f"{type(error).__name__}: {error}"
        if token := get_token():  # an HTTP client may quote a header
            reason = reason.replace(token, "(the token)")
        raise CheckpointError(
            f"{repo_id}: not pushed: {reason}. {folder} is complete: log in with `hf auth login` "
            f"if needed, and run the same command again; it does not send twice what has arrived"
        ) from error
    return str(url)
