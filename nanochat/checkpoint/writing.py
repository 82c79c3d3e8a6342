"""Writing a checkpoint's folder: whole or not at all, at once or beside the next training steps."""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from nanochat.checkpoint import manifest
from nanochat.checkpoint.index import good_checkpoint
from nanochat.common import CheckpointError, on_rank0, print0, rank_and_world
from nanochat.files import base_dir


def write_folder(
    final: Path,
    texts: dict[str, str],
    tensors: dict[str, dict[str, torch.Tensor]],
    tokenizer_fingerprint: str,
    place: dict,
    replace: bool = True,
) -> Path:
    """Writes and returns `final`, or leaves nothing behind. replace: see manifest.publish."""
    temporary = manifest.temporary_beside(final)
    manifest.sweep(final.parent)
    free = shutil.disk_usage(base_dir()).free
    try:
        for name, named in tensors.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            save_tensors(temporary / name, named, tokenizer_fingerprint)
        for name, text in texts.items():
            (temporary / name).write_text(text, encoding="utf-8")
        manifest.write_manifest(temporary, place)
        manifest.publish(temporary, final, replace)
    except (OSError, SafetensorError) as error:
        needed = sum(tensor.nbytes for named in tensors.values() for tensor in named.values())
        raise CheckpointError(
            f"{final} could not be written: {error}. It needs {needed / 1e6:,.1f} MB; "
            f"{free / 1e6:,.1f} MB were free in {base_dir()}. {good_checkpoint(final.parent)}"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # renamed away already when all went well
    return final


def save_tensors(path: Path, named: dict[str, torch.Tensor], tokenizer_fingerprint: str) -> None:
    """Writes a safetensors file whose metadata names the tokenizer; equal tensors, equal bytes."""
    metadata, own = {"format": "pt", "tokenizer_fingerprint": tokenizer_fingerprint}, {}
    for name, tensor in named.items():
        tensor = tensor.detach().cpu().contiguous()
        part = tensor.untyped_storage().nbytes() != tensor.nbytes  # which safetensors refuses
        own[name] = tensor.clone() if part else tensor
    save_file(own, path, metadata=metadata)
    # subtle: safetensors orders the metadata differently in each process
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        ordered = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
        text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length, "the header grew: safetensors spells JSON in another way"
        file.seek(8)
        file.write(text.ljust(length))
    path.chmod(0o644)  # safetensors lets nobody else read it


def copies_on_host(named: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors, those of a GPU copied into pinned memory in one go."""
    copies = {name: t.detach().to("cpu", non_blocking=True) for name, t in named.items()}
    torch.cuda.synchronize()
    return copies


class Writer:
    """Runs rank 0's writing beside the next training steps, a task at a time. All ranks call run()
    and wait(), which raise what the task before raised."""

    def __init__(self):
        self.pool = ThreadPoolExecutor(1)
        self.pending: Future | None = None

    def run(self, task: Callable[[], object]) -> None:
        self.wait()
        if rank_and_world()[0] == 0:
            self.pending = self.pool.submit(task)

    def wait(self) -> None:
        pending, self.pending = self.pending, None
        on_rank0(lambda: pending and pending.result())

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *exception) -> None:
        self.pool.shutdown()
        if self.pending and (error := self.pending.exception()):
            print0(f"the last checkpoint was not written: {error}")
