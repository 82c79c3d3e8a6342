"""The folder of a Hugging Face Space: a small Gradio chat page for an exported model."""

import importlib.metadata
import json
from pathlib import Path

from nanochat.common import CheckpointError
from nanochat.files import write_atomic

# Versions for packages that are not installed here: those that the tests passed with.
TESTED = {"gradio": "6.31.0", "transformers": "5.23.0", "torch": "2.13.0"}


def write_space(folder: Path, model_id: str, *, check_only: bool = False) -> None:
    """Writes app.py, requirements.txt, model_id.txt and README.md, whose head configures the Space.

    model_id: user/name on the hub, or a local folder to try the page with. Raises CheckpointError
    if the folder cannot be written, or has other files under these names; check_only: nothing else.
    """
    texts = space_files(model_id)
    try:
        there = {path.name for path in folder.iterdir()} if folder.exists() else set()
        for name in there & texts.keys():
            if (folder / name).read_bytes() != texts[name].encode():
                raise CheckpointError(
                    f"{folder / name} is not this Space's, so it is not replaced. Move it away, or "
                    f"export to another folder"
                )
        for name, text in ({} if check_only else texts).items():
            write_atomic(folder / name, text)
    except OSError as error:
        raise CheckpointError(f"{folder} could not be written: {error}") from error


def space_files(model_id: str) -> dict[str, str]:
    """The files' texts by name."""
    versions = {name: version(name) for name in TESTED}
    hub_model = "" if Path(model_id).is_absolute() else f"models:\n  - {model_id}\n"
    readme = f"""---
title: {json.dumps(Path(model_id).name)}
sdk: gradio
sdk_version: {versions["gradio"]}
app_file: app.py
pinned: false
{hub_model}---

Chat with {model_id}. `python app.py` runs the page on your machine.
"""
    # The Space's own runtime brings gradio, in the version that the README names.
    needed = [f"{name}=={versions[name]}\n" for name in ("transformers", "torch")]
    return {
        "README.md": readme,
        "app.py": Path(__file__).with_name("space_app.py").read_text(encoding="utf-8"),
        "model_id.txt": model_id + "\n",
        "requirements.txt": "".join(needed),
    }


def version(name: str) -> str:
    """The installed version, without a build's suffix such as +cpu; else the tested one."""
    try:
        return importlib.metadata.version(name).split("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return TESTED[name]
