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
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat.common import DataError, print0

TABLES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst")
# Hidden names, and the copies that editors, office programs and systems leave.
HIDDEN = re.compile(r"\..*|~\$.*|#.*#|.*~|__MACOSX", re.DOTALL)
SHOWN = 3  # malformed rows that are printed
ROWS_TO_JUDGE = 1000  # before it, a share of malformed rows says little


def data_files(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    """All files under a folder, linked folders included, with one of the endings, in order of
    name. A line says how many others are left out, and why; DataError for an unreadable folder."""
    found, others, visited = [], Counter(), set()

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error

    for root, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        hidden = [name for name in (*folders, *names) if HIDDEN.fullmatch(name)]
        others["hidden or an editor's copy"] += len(hidden)
        again = os.path.realpath(root) in visited  # a link to a folder above
        folders[:] = () if again else sorted(set(folders).difference(hidden))
        visited.add(os.path.realpath(root))
        for path in () if again else (Path(root, name) for name in set(names).difference(hidden)):
            if not path.is_file():
                others["a broken link or no regular file"] += 1
            elif not path.name.lower().endswith(endings):
                others[f"not *{', *'.join(endings)}"] += 1
            elif not path.stat().st_size:
                others["empty"] += 1
            else:
                found.append(path)
    listed = "; ".join(f"{n:,} {what}" for what, n in others.items() if n)
    if listed:
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

    check(row, where) returns a row as it is used, or raises DataError. Such rows, and what is no
    JSON object, end the reading; with max_malformed they are left out and counted by reason, the
    first are printed, and more than that share of the rows is a DataError.
    """
    path, rows, number, reasons = Path(path), 0, 0, Counter()
    lines = parquet_rows if path.suffix.lower() == ".parquet" else text_lines
    try:
        for number, line in enumerate(lines(path, columns), start=1):
            if isinstance(line, str) and not line.strip():
                continue
            rows += 1
            where = f"{path}:{number}"
            try:
                row = check(parse(line, where), where)
            except DataError as error:
                if max_malformed is None:
                    raise
                # Messages end in "expected ...": the reason, without what was found in this row.
                reasons[str(error).rpartition("expected ")[2]] += 1
                bad = reasons.total()
                if bad > max_malformed * max(rows, ROWS_TO_JUDGE):
                    raise DataError(f"{error}. {too_many(bad, rows, max_malformed)}") from error
                if bad <= SHOWN:
                    print0(f"left out: {error}")
            else:
                yield row
    except (OSError, EOFError, zlib.error, pa.ArrowException, ValueError, OverflowError) as error:
        raise DataError(f"{path} cannot be read after row {number}: {error}") from error
    if reasons:
        listed = "; ".join(f"{n:,} not {reason}" for reason, n in reasons.items())
        print0(f"{path}: {reasons.total():,} malformed rows left out: {listed}")
        if reasons.total() > max_malformed * rows:
            raise DataError(f"{path}: {too_many(reasons.total(), rows, max_malformed)}")


def too_many(bad: int, rows: int, allowed: float) -> str:
    return (
        f"Malformed rows: {bad:,} of the {rows:,} so far. Correct them, or leave some out: "
        f"--max-malformed, now {allowed:g}, is the share that may be"
    )


def parse(line: str | dict, where: str) -> dict:
    """A line as a JSON object; a row of Parquet as it is."""
    try:
        row = json.loads(line) if isinstance(line, str) else line
    except (ValueError, RecursionError) as error:
        reason = str(error).partition(":")[0]
        raise DataError(f"{where}: {reason}; expected one JSON object a line") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: found {type(row).__name__}, expected one JSON object a line")
    return row


def text_lines(path: Path, columns: list[str] | None) -> Iterator[str]:
    with open_text(path) as lines:
        yield from lines


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
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(as_bytes(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(as_bytes(field.type)) for field in kind])
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return pa.large_binary() if any(is_text(kind) for is_text in texts) else kind


def as_text(value):
    """The value with text wherever it has bytes; invalid UTF-8 comes out as U+FFFD."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, dict):
        return {key: as_text(inner) for key, inner in value.items()}
    return [as_text(inner) for inner in value] if isinstance(value, list) else value
