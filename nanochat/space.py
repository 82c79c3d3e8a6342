"""The folder of a Hugging Face Space: a small Gradio chat page for an exported model."""

import importlib.metadata
import json
from pathlib import Path

from nanochat.common import CheckpointError, write_atomic

# What a Space gets where these are not installed here: the versions that the tests passed with.
TESTED = {"gradio": "6.31.0", "transformers": "5.23.0", "torch": "2.13.0"}


def write_space(folder: Path, model_id: str) -> None:
    """Writes app.py, requirements.txt, README.md (whose head configures the Space), model_id.txt.

    model_id: user/name on the hub, or a local folder to try the page with. Raises CheckpointError
    when the folder already holds another app.py.
    """
    app = Path(__file__).with_name("space_app.py").read_text(encoding="utf-8")
    present = folder / "app.py"
    if present.exists() and present.read_text(encoding="utf-8") != app:
        raise CheckpointError(f"{present} is another one; name an empty folder for the Space")
    needs = {name: version(name) for name in TESTED}
    head = {
        "title": json.dumps(Path(model_id).name),  # a JSON string is one in YAML
        "sdk": "gradio",
        "sdk_version": needs["gradio"],
        "app_file": "app.py",
        "pinned": "false",
    }
    lines = ["---", *(f"{key}: {value}" for key, value in head.items())]
    if len(Path(model_id).parts) == 2 and not Path(model_id).exists():
        lines += ["models:", f"  - {model_id}"]
    lines += ["---", "", f"Chat with {model_id}. `python app.py` runs the page on your machine."]
    write_atomic(folder / "README.md", "\n".join(lines) + "\n")
    write_atomic(folder / "app.py", app)
    write_atomic(folder / "model_id.txt", model_id + "\n")
    # The Space's own runtime brings gradio, in the version that the README's head names.
    wanted = [f"{name}=={needs[name]}" for name in ("transformers", "torch")]
    write_atomic(folder / "requirements.txt", "\n".join(wanted) + "\n")


def version(name: str) -> str:
    """The installed version, without a build's mark such as +cpu; else the one tested."""
    try:
        return importlib.metadata.version(name).split("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return TESTED[name]
