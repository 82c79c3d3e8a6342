"""Files of a model hub: downloaded with huggingface_hub, tried again, checked."""

import hashlib
import os
import sys
import time
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat.common import DataError, print0
from nanochat.files import base_dir, write_atomic

ATTEMPTS = 8  # for a file of a hub that answers
SECONDS_TO_CONNECT = 10.0  # after this a hub where nobody answers is given up
GONE = (401, 403, 404)  # answers that another try does not change


def faults() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises when the network, or the hub, does not do what it was asked."""
    from huggingface_hub import errors

    # OSError: the library's own checks too; RuntimeError: hf_xet's. subtle: the library has
    # imported the HTTP client that it uses, which differs by version.
    clients = [sys.modules[name] for name in ("httpx", "httpx2") if name in sys.modules]
    return (OSError, RuntimeError, errors.HfHubHTTPError, *(c.HTTPError for c in clients))


def with_retries(what: str, function: Callable[[], object], ways_out: str | None = None):
    """function(), tried again after network faults; DataError with the ways out if they stay.

    A function that finds its download damaged raises DataError, and is tried again too.
    """
    ways_out = ways_out or (
        f"No local folder has that name. The hub is {os.environ.get('HF_ENDPOINT', 'the default')}:"
        " name a mirror in HF_ENDPOINT, or work offline: --data=packaged, or --data=FOLDER with "
        ".parquet, .jsonl, .txt or .md files"
    )
    start = time.monotonic()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return function()
        except (*faults(), DataError) as error:
            last = error
        if (status := getattr(getattr(last, "response", None), "status_code", 0)) in GONE:
            raise DataError(
                f"{what}: the server answers {status}: not there, or not open to this account. "
                f"{ways_out}"
            ) from last
        cause = last.__cause__ or last
        offline = "Offline" in type(cause).__name__  # HF_HUB_OFFLINE=1
        unreachable = offline or "Connect" in type(cause).__name__
        late = unreachable and time.monotonic() - start >= SECONDS_TO_CONNECT
        if attempt == ATTEMPTS or offline or late:
            break
        wait = min(0.25 * 2**attempt, 15)
        print0(f"{what}: {type(last).__name__}; trying again in {wait:g} s")
        time.sleep(wait)
    raise DataError(
        f"{what}: tried {attempt} times; the last error was {type(cause).__name__}: {cause}. "
        f"{ways_out}"
    ) from last


def hub_file(repo_id: str, filename: str, repo_type: str = "dataset") -> Path:
    """A file of the hub on this disk: downloaded and checked if it is not there yet.

    Honours HF_ENDPOINT and HF_HOME. A file that fails its check is downloaded again. Raises
    DataError that says what was tried, and the offline way.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    again = False

    def fetch() -> Path:
        nonlocal again
        start = time.monotonic()
        path = Path(hf_hub_download(repo_id, filename, repo_type=repo_type, force_download=again))
        again = True
        if check_file(path):
            size, seconds = path.stat().st_size, time.monotonic() - start
            print0(f"{repo_id}/{filename}: {size / 1e6:,.1f} MB, checked, in {seconds:.1f} s")
        return path

    return with_retries(f"{repo_id}/{filename}", fetch)


def hub_files(repo_id: str, pattern: str = "*", repo_type: str = "dataset") -> list[str]:
    """Names of the files of a hub repository that match a glob, sorted."""
    from huggingface_hub import HfApi

    names = with_retries(repo_id, lambda: HfApi().list_repo_files(repo_id, repo_type=repo_type))
    return sorted(name for name in names if fnmatch(name, pattern))


def check_file(path: Path) -> bool:
    """Checks a download, once: its SHA-256 where the hub gave one, all rows of a Parquet file.

    Returns whether it was checked just now. Raises DataError if it is damaged.
    """
    blob = path.resolve()  # the cache names large files by their SHA-256
    mark = f"{blob}, {blob.stat().st_size} bytes, changed {blob.stat().st_mtime_ns}"
    note = base_dir() / "checked_downloads" / hashlib.sha256(mark.encode()).hexdigest()
    if note.exists():
        return False
    if len(blob.name) == 64:
        with blob.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != blob.name:
            raise DataError(f"{path}: its SHA-256 is {found}, the hub says {blob.name}")
    if path.suffix == ".parquet":
        try:
            with pq.ParquetFile(path) as file:
                for _ in file.iter_batches(1024):
                    pass
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path} is no whole Parquet file: {error}") from error
    write_atomic(note, mark + "\n")
    return True
