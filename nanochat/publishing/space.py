"""The folder of a Hugging Face Space: a small Gradio chat page for an exported model."""

import importlib.metadata
import json
import re
from pathlib import Path

from nanochat.common import CheckpointError
from nanochat.files import write_atomic

# What a Space gets where these are not installed here: the versions that the tests passed with.
TESTED = {"gradio": "6.31.0", "transformers": "5.23.0", "torch": "2.13.0"}


# What this module wrote, at whatever time: it may be written over. app.py is compared as it is.
OURS = {
    "README.md": r"---\ntitle: \".*\"\nsdk: gradio\nsdk_version: .+\napp_file: app\.py\n"
    r"pinned: false\n(models:\n  - .+\n)?---\n\n"
    r"Chat with .+\. `python app\.py` runs the page on your machine\.\n",
    "model_id.txt": r".+\n",
    "requirements.txt": r"transformers==.+\ntorch==.+\n",
}


def page() -> str:
    """The text of app.py."""
    return Path(__file__).with_name("space_app.py").read_text(encoding="utf-8")


def check_space(folder: Path) -> None:
    """CheckpointError unless write_space may write into `folder`: nothing of another's is there
    under the names of its files."""
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; the Space needs a folder there. Move it away")
    for name, pattern in {"app.py": re.escape(page()), **OURS}.items():
        path = folder / name
        if not path.exists():
            continue
        text = path.read_bytes().decode(errors="replace") if path.is_file() else ""
        if not re.fullmatch(pattern, text.replace("\r\n", "\n")):
            raise CheckpointError(
                f"{path} is another one, and writing the Space would replace it. Move it away, or "
                f"export to another folder"
            )


def write_space(folder: Path, model_id: str) -> None:
    """Writes app.py, requirements.txt, README.md (whose head configures the Space), model_id.txt.

    model_id: user/name on the hub, or a local folder to try the page with. Raises CheckpointError
    when the folder cannot be written, or holds files of others under these names: see check_space.
    """
    check_space(folder)
    try:
        for name, text in space_files(model_id).items():
            write_atomic(folder / name, text)
    except OSError as error:
        raise CheckpointError(f"{folder} could not be written: {error}") from error


def space_files(model_id: str) -> dict[str, str]:
    """The files' texts by name."""
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
    # The Space's own runtime brings gradio, in the version that the README's head names.
    wanted = [f"{name}=={needs[name]}" for name in ("transformers", "torch")]
    return {
        "README.md": "\n".join(lines) + "\n",
        "app.py": page(),
        "model_id.txt": model_id + "\n",
        "requirements.txt": "\n".join(wanted) + "\n",
    }


def version(name: str) -> str:
    """The installed version, without a build's mark such as +cpu; else the one tested."""
    try:
        return importlib.metadata.version(name).split("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return TESTED[name]
