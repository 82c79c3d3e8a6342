"""The files of an exported folder, and whether they are still the ones that were proved."""

from pathlib import Path

from nanochat.checkpoint.manifest import MANIFEST, read_manifest, sha256_of_all
from nanochat.common import CheckpointError
from nanochat.files import read_json

CARD, PARITY = "README.md", "parity.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"

# What is no part of a nanochat folder, and loaders may read.
STRAY = (".py", ".bin", ".pt", ".pkl", ".model", "tokens.json", "tokens_map.json")
STRAY += ("vocab.json", "merges.txt", "vocab.txt", "adapter_config.json")


def read_record(path: Path) -> dict | None:
    """The dictionary in a JSON file, None if there is no file; else CheckpointError."""
    if not path.is_file():
        return None
    record = read_json(path, "Restore or remove it", CheckpointError)
    if not isinstance(record, dict):
        raise CheckpointError(f"{path} holds a {type(record).__name__}, expected a dictionary")
    return record


def changed_files(folder: Path) -> list[str]:
    """A sentence for each file that is not as manifest.json has it; none for a folder without one.

    The model card may change: people edit it.
    """
    if not (folder / MANIFEST).is_file():
        return []
    files = read_manifest(folder)["files"]
    files.pop(CARD, None)
    found = sha256_of_all(folder, [name for name in files if (folder / name).is_file()])
    changed = [f"{name} is missing" for name in files if name not in found]
    for name, digest in found.items():
        if digest != files[name]["sha256"]:
            changed.append(f"{name} has changed since it was written")
    there = {path.name for path in folder.iterdir() if path.is_file()} - {CARD, MANIFEST}
    return changed + [f"{name} was added later" for name in sorted(there - files.keys())]
