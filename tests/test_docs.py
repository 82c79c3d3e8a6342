"""The documents hold: snippets print what they say; links, files and flags that they name exist."""

import contextlib
import dataclasses
import importlib
import io
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", re.M | re.S)
OWN_FOLDERS = ("nanochat", "scripts", "tasks", "tests", "bench", "runs", "docs", "dev", "notebooks")
IGNORED_FLAGS = {"help", "standalone", "nproc_per_node", "nodes"}  # of tyro, torchrun and sbatch


def blocks_of_sections(text: str) -> list[list[tuple[str, str]]]:
    """For each section of a page: (code, expected output) of its python blocks."""
    return [BLOCK.findall(section) for section in text.split("\n## ")]


@pytest.mark.slow
def test_the_tours_snippets_print_what_it_says(monkeypatch):
    monkeypatch.setenv("NANOCHAT_DTYPE", "float32")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for blocks in blocks_of_sections((ROOT / "docs" / "tour.md").read_text()):
            names: dict = {"__name__": "tour"}
            for code, expected in blocks:
                printed = io.StringIO()
                with contextlib.redirect_stdout(printed):
                    exec(compile(code, "docs/tour.md", "exec"), names)
                assert printed.getvalue() == expected, code
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_files_and_modules_exist(page):
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    paths = re.findall(rf"(?<![\w/.])(?:{'|'.join(OWN_FOLDERS)})/[\w./-]*\w", text)
    missing += [path for path in paths if not (ROOT / path).exists()]
    modules = re.findall(r"-m ((?:scripts|bench)\.\w+)", text)
    missing += [name for name in modules if not (ROOT / f"{name.replace('.', '/')}.py").exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_of_a_command_is_a_flag_of_its_script(page):
    unknown = []
    for line in page.read_text().splitlines():
        found = re.search(r"(?:-m scripts\.|python scripts/)(\w+)(?:\.py)?([^`#]*)", line)
        if not found:
            continue
        config = importlib.import_module(f"scripts.{found[1]}").Config
        fields = {field.name.rstrip("_") for field in dataclasses.fields(config)}
        for part in (field.default for field in dataclasses.fields(config)):
            if dataclasses.is_dataclass(part):  # its flags stand beside the others
                fields |= {field.name for field in dataclasses.fields(part)}
        flags = {flag.replace("-", "_") for flag in re.findall(r"--([a-z][\w-]*)", found[2])}
        unknown += [f"{found[1]}: {flag}" for flag in flags - fields - IGNORED_FLAGS]
    assert unknown == []
