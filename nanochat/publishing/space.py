"""The folder of a Hugging Face Space: a small Gradio chat page for an exported model."""

import json
from pathlib import Path

from nanochat.common import CheckpointError
from nanochat.files import write_atomic

GRADIO = "6.31.0"  # it comes with the Space's own runtime; these are what the tests passed with
REQUIREMENTS = "transformers==5.23.0\ntorch==2.13.0\n"


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
    hub_model = "" if Path(model_id).is_absolute() else f"models:\n  - {model_id}\n"
    readme = f"""---
title: {json.dumps(Path(model_id).name)}
sdk: gradio
sdk_version: {GRADIO}
app_file: app.py
pinned: false
{hub_model}---

Chat with {model_id}. `python app.py` runs the page on your machine.
"""
    return {
        "README.md": readme,
        "app.py": Path(__file__).with_name("space_app.py").read_text(encoding="utf-8"),
        "model_id.txt": model_id + "\n",
        "requirements.txt": REQUIREMENTS,
    }
