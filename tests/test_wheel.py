"""A wheel made from the tree and installed elsewhere is whole: it trains, reports and serves."""

import json
import os
import shutil
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHAPE = "--depth=1 --head-dim=16 --sequence-len=32 --total-batch-size=64 --num-steps=2"

# In one process, because an import of torch takes seconds.
SCRIPTS = """
import runpy, sys
import nanochat.gpt
print("imported", nanochat.gpt.__file__, flush=True)
commands = " ".join(sys.argv[1:]).split(" then ")
for sys.argv in map(str.split, commands):
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=False)
"""

pytestmark = pytest.mark.slow


def start_python(folder: Path, *arguments: str) -> subprocess.Popen:
    """Python in `folder`, where the only nanochat is the installed wheel."""
    own = {"PYTHONPATH": str(folder / "site"), "NANOCHAT_BASE_DIR": str(folder / "base")}
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=folder, env={**os.environ, **own, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def installed(tmp_path_factory, share_compiled) -> Path:
    """A folder away from the tree with the wheel in site/ and a little text in texts/."""
    folder = tmp_path_factory.mktemp("installed")
    share_compiled(folder / "base")
    tree = folder / "tree"  # a copy: building leaves files in it
    for name in ("nanochat", "scripts", "tasks"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tree / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    # As pip calls it; a wheel without compiled code is installed by unpacking it.
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", build, folder], cwd=tree, check=True, stdout=subprocess.DEVNULL
    )
    shutil.rmtree(tree)
    (wheel,) = folder.glob("nanochat-*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder / "site")
    (folder / "texts").mkdir()
    for name in ("a", "b"):
        lines = [json.dumps({"text": f"{name} {n}: the quick brown fox"}) for n in range(20)]
        (folder / "texts" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_the_wheel_trains_reports_and_serves(installed):
    flags = f"{SHAPE} --data=texts --no-compile --eval-tokens=64 --model-tag=w".split()
    tok_train = ["scripts.tok_train", "--data=texts", "--vocab-size=320"]
    chat_web = ["scripts.chat_web", "--source=base", "--model-tag=w", "--port=0"]
    stages = [*tok_train, "then", "scripts.base_train", *flags, "then", *chat_web]
    server = start_python(installed, "-c", SCRIPTS, *stages)
    try:
        imported, address = where_and_address(server)
        assert imported.is_relative_to(installed / "site")
        report = (installed / "base" / "report" / "w" / "report.html").read_text()
        assert "<style>" in report
        page = urllib.request.urlopen(address, timeout=10).read().decode()
        for name in ("style.css", "chat.js"):
            assert name in page
            assert urllib.request.urlopen(f"{address}/{name}", timeout=10).status == 200
    finally:
        server.terminate()
        server.communicate(timeout=30)


def where_and_address(server: subprocess.Popen) -> tuple[Path, str]:
    """(the file that was imported, the address that a server prints once it answers)"""
    printed, imported = "", None
    while line := server.stdout.readline():
        printed += line
        if line.startswith("imported "):
            imported = Path(line.split()[1])
        for word in line.split():
            if word.startswith("http://"):
                return imported, word.rstrip("/")
    raise AssertionError(f"the server printed no address:\n{printed}")
