"""Files: where ours are kept, writes that a crash leaves whole, and the reader of JSON."""

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nanochat.common import ConfigError, DataError, NanochatError


def user_path(text: str | Path) -> Path:
    """A path as a user writes it, with ~ for the home folder."""
    path = os.path.expanduser(text)  # subtle: unlike Path's, it leaves ./~ as it is
    if path.startswith("~"):
        raise ConfigError(f"{text}: there is no such home folder; write the whole path")
    return Path(path)


def base_dir() -> Path:
    """$NANOCHAT_BASE_DIR, or ~/.cache/nanochat; made if it is not there."""
    path = user_path(os.environ.get("NANOCHAT_BASE_DIR") or "~/.cache/nanochat").absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{error}. NANOCHAT_BASE_DIR names the folder to write to") from error
    return path


def write_atomic(path: Path | str, data: str | bytes) -> None:
    """Writes beside `path`, flushes, renames: readers see the old file or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = data.encode() if isinstance(data, str) else data
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder against other processes and ranks."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield  # given back by closing, or by the process's death


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(
    path: Path | str,
    remedy: str = "Restore the file, or make it again",
    error: type[NanochatError] = DataError,
) -> Any:
    """The content of a JSON file; raises `error` with the file, the reason and the remedy."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as reason:
        raise error(f"{path} could not be read: {reason.strerror}. {remedy}") from reason
    except (ValueError, RecursionError) as reason:
        raise error(f"{path} is not JSON: {str(reason):.200}. {remedy}") from reason
