"""A task's rows: where they lie, on this disk or on a hub, and what must be in them."""

from collections.abc import Callable
from pathlib import Path

from nanochat.common import DataError
from nanochat.data.hub import hub_file
from nanochat.data.rows import TABLES, data_files, read_rows
from nanochat.files import user_path

# A column: its value as it is used; or ValueError, which says what was expected.
Column = Callable[[object], object]


def text(value: object) -> str:
    if isinstance(value, str) and value.strip():
        return value
    raise ValueError("a text")


def texts(value: object) -> list[str]:
    if isinstance(value, list) and value:
        return [text(one) for one in value]
    raise ValueError("a list of texts")


def number_below(end: int) -> Column:
    """A whole number 0..end-1, also where a table made it a float."""

    def column(value: object) -> int:
        if isinstance(value, int | float) and not isinstance(value, bool) and value in range(end):
            return int(value)
        raise ValueError(f"a number from 0 to {end - 1}")

    return column


def check_columns(row: dict, where: str, columns: dict[str, Column]) -> dict:
    """The row with each of the columns as it is used; DataError names one that cannot be."""
    checked = {}
    for name, column in columns.items():
        if name not in row:
            there = ", ".join(row) or "none"
            raise DataError(f"{where}: found columns {there}, expected {', '.join(columns)}")
        try:
            checked[name] = column(row[name])
        except ValueError as expected:
            raise DataError(
                f"{where}: {name!r} is {row[name]!r:.60}, expected {expected}"
            ) from expected
    return row | checked


def load_rows(
    path: Path | str,
    check: Callable[[dict, str], dict],
    columns: list[str] | None = None,
    max_malformed: float | None = None,
) -> list[dict]:
    """All rows of a file, checked (see read_rows); DataError if there is none."""
    rows = list(read_rows(path, columns, check, max_malformed))
    if not rows:
        raise DataError(f"{path} has no rows")
    return rows


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
    path = user_path(source)
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


def file_in_folder(folder: Path, name: str, split: str) -> Path:
    for path in (folder / name, folder / Path(name).name):
        if path.is_file():
            return path
    if (folder / name).parent.is_dir():
        folder = (folder / name).parent
    found = data_files(folder, TABLES)
    chosen = [p for p in found if split in p.name]
    if len(chosen) != 1:
        raise DataError(
            f"{folder}: found {len(chosen)} files for split {split} among {len(found)} data files; "
            f"expected {name}, or one of {', '.join(TABLES)} with {split!r} in its name"
        )
    return chosen[0]
