"""Where a task's rows lie: in a file or folder on this disk, or on a hub."""

from pathlib import Path

from nanochat.common import DataError
from nanochat.data.sources import hub_file

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst")


def data_file(source: str | Path | None, repo_id: str, name: str, split: str) -> Path:
    """The file with a split's rows; DataError where there is none.

    source: None for the hub's `repo_id`, which has the file under `name`; another hub id of that
    layout; a local file; or a local folder, which has it under `name`, under the last part of
    `name`, or else as its only data file with the split in its name.

    Example: data_file("./gsm8k", "openai/gsm8k", "main/test-00000-of-00001.parquet", "test") may be
    ./gsm8k/main/test-00000-of-00001.parquet, or ./gsm8k/test.jsonl.
    """
    if source is None:
        return hub_file(repo_id, name)
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        return file_in_folder(path, name, split)
    return hub_file(hub_id(source), name)


def hub_id(source: str | Path) -> str:
    """`source`, if it has the form of a hub id; else DataError."""
    if str(source).count("/") != 1 or str(source).startswith((".", "/", "~")):
        raise DataError(f"{source}: neither a file, nor a folder, nor a hub id such as owner/name")
    return str(source)


def data_files(folder: Path) -> list[Path]:
    """All data files in a folder and those below."""
    return [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name.endswith(SUFFIXES)]


def file_in_folder(folder: Path, name: str, split: str) -> Path:
    for path in (folder / name, folder / Path(name).name):
        if path.is_file():
            return path
    if (folder / name).parent.is_dir():
        folder = (folder / name).parent
    found = data_files(folder)
    chosen = [p for p in found if split in p.name]
    if len(chosen) != 1:
        raise DataError(
            f"{folder}: found {len(chosen)} files for split {split} among {len(found)} data files; "
            f"expected {name}, or one of {', '.join(SUFFIXES)} with {split!r} in its name"
        )
    return chosen[0]
