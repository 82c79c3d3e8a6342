"""Export a checkpoint as GGUF for llama.cpp, Ollama and LM Studio, and prove that it is the same.

    python scripts/export_to_gguf.py --source sft --output-dir ./gguf_model --type q8_0

The file is kept only if llama.cpp (the package llama-cpp-python) gives the same ids, and nearly the
same probabilities, as the native model. A Modelfile for Ollama is written beside it.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanochat.checkpoint import manifest
from nanochat.checkpoint.hf_config import from_hf
from nanochat.checkpoint.index import checkpoint_of
from nanochat.checkpoint_manager import CONFIG
from nanochat.common import CheckpointError, require_package
from nanochat.configurator import cli
from nanochat.files import write_atomic
from nanochat.publishing.export_files import read_record
from nanochat.publishing.parity import summary


@dataclass(frozen=True)
class Config:
    output_dir: Path
    """Folder to write model-<type>.gguf, Modelfile and parity-<type>.json into."""
    source: str = "sft"
    """Stage of the model (base, mid, sft, rl), or a checkpoint's folder."""
    model_tag: str | None = None
    """Run to take; default: the newest."""
    step: int | None = None
    """Its step; default: the newest."""
    type: Literal["f16", "bf16", "q8_0"] = "f16"
    """What the matrices are rounded to."""
    drop_softcap: bool = False
    """Write a model with a logit soft-cap although the file cannot hold it; results change."""
    unproved: bool = False
    """Keep the file without comparing it with the native model."""


def main(config: Config) -> None:
    checkpoint = checkpoint_of(config.source, config.model_tag, config.step)
    require_package("gguf")
    if not config.unproved:
        require_package(
            "llama_cpp",
            "pip install llama-cpp-python (it compiles llama.cpp, some minutes), or skip the "
            "comparison with the native model with --unproved",
        )
    try:
        write(config, checkpoint)
    except OSError as error:
        raise CheckpointError(f"{config.output_dir} could not be written: {error}") from error


def write(config: Config, checkpoint: Path) -> None:
    """The file, its proof and its Modelfile, in config.output_dir."""
    from nanochat.publishing.gguf import modelfile, write_gguf
    from nanochat.publishing.gguf_parity import probabilities, prove

    output = config.output_dir / f"model-{config.type}.gguf"
    proof = config.output_dir / f"parity-{config.type}.json"
    config.output_dir.mkdir(parents=True, exist_ok=True)
    manifest.sweep(output.parent, output.name)
    folder = manifest.temporary_beside(output)
    try:
        folder.mkdir()
        new = folder / output.name
        write_gguf(checkpoint, new, config.type, config.drop_softcap)
        if config.unproved:
            print("not compared with the native model (--unproved)")
        else:
            report = prove(new, checkpoint, config.type, config.drop_softcap)
            print(f"{summary(report)}\n{probabilities(report)}")
        proof.unlink(missing_ok=True)  # an earlier one is not about this file
        new.replace(output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if not config.unproved:
        write_atomic(proof, json.dumps(report, indent=1) + "\n")
    settings = read_record(checkpoint / CONFIG)
    write_atomic(config.output_dir / "Modelfile", modelfile(output.name, from_hf(settings)))
    print(f"{checkpoint} is written as {output}, {output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    cli(main, Config)
