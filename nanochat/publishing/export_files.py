"""The files of an export: which there are, and whether they are still those that were proved.

parity.json holds the SHA-256 of every other file but the card, which people write in.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from nanochat.checkpoint.manifest import sha256_of_all
from nanochat.checkpoint_manager import CONFIG, GENERATION, RUN, TEMPLATE
from nanochat.common import CheckpointError

CARD, PARITY, INDEX = "README.md", "parity.json", "model.safetensors.index.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
COPIED = (GENERATION, TOKENIZER, TOKENIZER_CONFIG, TEMPLATE)  # byte for byte the checkpoint's
WRITTEN = {*COPIED, CONFIG, RUN, CARD, PARITY, INDEX}


def strangers(folder: Path) -> list[str]:
    """What is in the folder and no export wrote, sorted."""
    names = sorted(path.name for path in folder.iterdir())
    return [n for n in names if n not in WRITTEN and not n.endswith(".safetensors")]


def compared(folder: Path, checkpoint: Path, dtype: str) -> Iterator[tuple[str, object, object]]:
    """(what, found, expected) of every file of an export that its checkpoint determines whole.

    Weights are left out: transformers must load them, and then they can be compared.
    """
    for name in COPIED:
        path = folder / name
        whole = path.is_file() and path.read_bytes() == (checkpoint / name).read_bytes()
        yield name, "the checkpoint's" if whole else "another file", "the checkpoint's"
    found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    expected = json.loads((checkpoint / CONFIG).read_text(encoding="utf-8")) | {"dtype": dtype}
    for key in sorted(found.keys() | expected.keys()):
        yield f"{CONFIG} {key}", found.get(key, "absent"), expected.get(key, "absent")
    yield "files that no export writes", strangers(folder), []


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 by name of what parity.json proves: every file but the card and itself."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    return sha256_of_all(folder, [name for name in names if name not in (CARD, PARITY)])


def proof_of(folder: Path) -> dict:
    """What parity.json says, {} where there is none; CheckpointError for one that is damaged."""
    path = folder / PARITY
    try:
        proof = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON: {str(error):.200}. Export it again") from error
    if not isinstance(proof, dict):
        raise CheckpointError(f"{path} holds a {type(proof).__name__}, expected a dictionary")
    return proof


def changed_since_proof(folder: Path) -> list[str]:
    """A sentence for each file that is not as parity.json says; [] when it holds no hashes, as in
    exports of before it did."""
    proved = proof_of(folder).get("files")
    if not isinstance(proved, dict):
        return []
    found = hashes(folder)
    changed = [
        f"{name} is missing" if name not in found else f"{name} is not the file that was proved"
        for name, digest in proved.items()
        if found.get(name) != digest
    ]
    added = sorted(found.keys() - proved.keys())
    return changed + [f"{name} was not there when the rest was proved" for name in added]
