"""Rows of files: JSON lines and Parquet, plain or compressed. What cannot be read is named."""

import codecs
import gzip
import io
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat.common import DataError, print0

TABLES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst")
# Hidden, or a copy that an editor or a system left.
HIDDEN = re.compile(r"\..*|~\$.*|#.*#|.*~|__MACOSX", re.DOTALL)
SHOWN = 3  # malformed rows that are printed
ROWS_TO_JUDGE = 1000  # before it, a share of malformed rows says little


def data_files(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    """All files under a folder, linked ones too, with one of the endings, in order of name. Prints
    how many others there are; DataError for a folder that cannot be read."""
    found, others, visited = [], Counter(), set()

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error

    for root, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        hidden = {name for name in (*folders, *names) if HIDDEN.fullmatch(name)}
        folders[:] = sorted(set(folders) - hidden)
        if (place := os.path.realpath(root)) in visited:  # a link led here
            folders.clear()
            continue
        visited.add(place)
        others["hidden or an editor's copy"] += len(hidden)
        for path in (Path(root, name) for name in set(names) - hidden):
            if not path.is_file():
                others["a broken link or no regular file"] += 1
            elif not path.name.lower().endswith(endings):
                others[f"not *{', *'.join(endings)}"] += 1
            elif not path.stat().st_size:
                others["empty"] += 1
            else:
                found.append(path)
    if others.total():
        listed = "; ".join(f"{n:,} {what}" for what, n in others.items() if n)
        print0(f"{folder}: files left out: {listed}")
    return sorted(found)


def open_text(path: Path) -> io.TextIOBase:
    """A possibly compressed file as lines of UTF-8, or of UTF-16 if it begins with that mark;
    invalid bytes come out as U+FFFD."""
    if path.suffix.lower() == ".gz":
        file = gzip.GzipFile(path)
    elif path.suffix.lower() == ".zst":
        # subtle: unlike zstandard's reader, Arrow's raises at the end of a file that was cut.
        file = io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
    else:
        file = path.open("rb")
    utf16 = file.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    return io.TextIOWrapper(file, encoding="utf-16" if utf16 else "utf-8-sig", errors="replace")


def read_rows(
    path: Path | str,
    columns: list[str] | None = None,
    check: Callable[[dict, str], dict] = lambda row, where: row,
    max_malformed: float | None = None,
) -> Iterator[dict]:
    """The rows of a .parquet or .jsonl[.gz|.zst] file, in bounded memory; columns: of Parquet.

    check(row, where) returns a row as it is used, or raises DataError, "..., expected ...". A
    malformed row ends the reading; with max_malformed such rows are left out, printed (the first)
    and counted by reason, and a larger share of them is a DataError.
    """
    path, rows, number, reasons = Path(path), 0, 0, Counter()
    parquet = path.suffix.lower() == ".parquet"
    try:
        with closing(parquet_rows(path, columns) if parquet else open_text(path)) as lines:
            for number, line in enumerate(lines, start=1):
                if isinstance(line, str) and not line.strip():
                    continue
                rows += 1
                where = f"{path}:{number}"
                try:
                    row = check(parse(line, where), where)
                except DataError as error:
                    if max_malformed is None:
                        raise
                    reasons[str(error).rpartition("expected ")[2]] += 1
                    bad, last = reasons.total(), error
                    if bad > max_malformed * max(rows, ROWS_TO_JUDGE):
                        raise too_many(error, bad, rows, max_malformed) from error
                    if bad <= SHOWN:
                        print0(f"left out: {error}")
                else:
                    yield row
    except (OSError, EOFError, zlib.error, pa.ArrowException, ValueError, OverflowError) as error:
        raise DataError(f"{path} cannot be read after row {number}: {error}") from error
    if reasons:
        listed = "; ".join(f"{n:,} not {reason}" for reason, n in reasons.items())
        print0(f"{path}: {bad:,} malformed rows left out: {listed}")
        if bad > max_malformed * rows:
            raise too_many(last, bad, rows, max_malformed)


def too_many(error: DataError, bad: int, rows: int, allowed: float) -> DataError:
    return DataError(
        f"{error}. {bad:,} of the {rows:,} rows so far are malformed: correct them, or leave out a "
        f"larger share than --max-malformed={allowed:g}"
    )


def parse(line: str | dict, where: str) -> dict:
    """A line of JSON, or a row of Parquet, which is a dictionary already."""
    try:
        row = json.loads(line) if isinstance(line, str) else line
        reason = f"found {type(row).__name__}"
    except (ValueError, RecursionError) as error:
        row, reason = None, str(error).partition(":")[0]
    if isinstance(row, dict):
        return row
    raise DataError(f"{where}: {reason}, expected one JSON object a line")


def parquet_rows(path: Path, columns: list[str] | None) -> Iterator[dict]:
    """Rows of a Parquet file; columns that it does not have are left out. Bytes are text too."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(1024, columns=columns):
            try:
                rows = batch.to_pylist()
            except UnicodeDecodeError:
                types = [field.with_type(as_bytes(field.type)) for field in batch.schema]
                rows = batch.cast(pa.schema(types), safe=False).to_pylist()
            yield from map(as_text, rows)


def as_bytes(kind: pa.DataType) -> pa.DataType:
    """The type with bytes wherever it has text."""
    if isinstance(kind, pa.ListType | pa.LargeListType):
        return pa.list_(as_bytes(kind.value_type))
    if isinstance(kind, pa.StructType):
        return pa.struct([field.with_type(as_bytes(field.type)) for field in kind])
    return pa.binary() if str(kind) in ("string", "large_string", "string_view") else kind


def as_text(value):
    """The value with text wherever it has bytes; invalid UTF-8 comes out as U+FFFD."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, dict):
        return {key: as_text(inner) for key, inner in value.items()}
    return [as_text(inner) for inner in value] if isinstance(value, list) else value
