"""The quick tests pass with Colab's versions: Python 3.13, torch 2.11, numpy 2.1, no tyro.

By hand, with another Python or torch (the variables are pip's and this file's):
    COLAB_PYTHON=python3.12 COLAB_TORCH=2.12.0 python -m pytest tests/test_colab_versions.py
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYTHON, TORCH = (
    os.environ.get("COLAB_PYTHON", "python3.13"),
    os.environ.get("COLAB_TORCH", "2.11.0"),
)
IMAGE = ["numpy==2.1.*", "transformers==5.15.*"]  # Colab's, August 2026
SETUP = "from notebooks import setup; setup.install(); setup.print_versions()"


def run(*command, **options) -> str:
    options = {"cwd": ROOT, "capture_output": True, "text": True} | options
    done = subprocess.run(command, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def is_a_python(command: str) -> bool:
    """subtle: pyenv's shims are found, and may be of a version that is not the chosen one."""
    done = shutil.which(command) and subprocess.run([command, "--version"], capture_output=True)
    return bool(done) and done.returncode == 0


def index_of_torch() -> list[str]:
    url = os.environ.get("TORCH_INDEX_URL")
    return ["--index-url", url] if url else []


def why_no_torch(python: str, report: Path) -> str:
    """ "" where pip finds torch for the CPU; nothing is downloaded but its metadata."""
    dry_run = ["install", "-q", "--dry-run", "--ignore-installed", "--no-deps", "--report", report]
    command = [python, "-m", "pip", *dry_run, *index_of_torch(), f"torch=={TORCH}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return f"pip finds no torch {TORCH} for {PYTHON}"
    (found,) = json.loads(report.read_text())["install"]
    needs = found["metadata"].get("requires_dist", [])
    if any("nvidia" in need or "cuda" in need for need in needs) and os.uname().machine == "x86_64":
        return (
            f"torch {TORCH} is there only as a build with gigabytes of CUDA; set TORCH_INDEX_URL "
            f"to PyTorch's index of CPU builds"
        )
    return ""


@pytest.fixture(scope="module")
def colab_python(tmp_path_factory) -> str:
    """The interpreter of a new environment with the versions that Colab comes with."""
    pyenv = sorted(Path.home().glob(f".pyenv/versions/{PYTHON.removeprefix('python')}*/bin/python"))
    found = next(filter(is_a_python, [PYTHON, *map(str, pyenv)]), None)
    if not found:
        pytest.skip(f"no {PYTHON} here")
    folder = tmp_path_factory.mktemp("colab")
    run(found, "-m", "venv", folder / "venv")
    python = str(folder / "venv" / "bin" / "python")
    if reason := why_no_torch(python, folder / "report.json"):
        pytest.skip(reason)
    pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    run(*pip, *index_of_torch(), f"torch=={TORCH}")
    run(*pip, *IMAGE, "packaging")
    return python


@pytest.mark.slow
def test_the_quick_tests_pass_with_colabs_versions(colab_python):
    versions = run(colab_python, "-c", SETUP)
    assert "tyro" in versions.partition("installed: ")[2] and f"{TORCH}" in versions
    image = [*IMAGE, f"torch=={TORCH}"]
    listed = run(colab_python, "-m", "pip", "list", "--format=freeze")
    for name, version in (text.rstrip(".*").split("==") for text in image):
        assert f"\n{name}=={version}" in f"\n{listed}"
    pip = [colab_python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    run(*pip, *image, "pytest", "hypothesis", "pytest-xdist", "httpx", "openai", "nbformat")
    quick = ["-m", "not slow", "-n", "2", "--dist", "loadfile", "-p", "no:cacheprovider"]
    print(run(colab_python, "-m", "pytest", *quick)[-2000:])
