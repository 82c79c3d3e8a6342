"""Files: where ours are kept, writes that a crash leaves whole, and the reader of JSON."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from nanochat.common import ConfigError, DataError, NanochatError


def base_dir() -> Path:
    """$NANOCHAT_BASE_DIR, or ~/.cache/nanochat; made if it is not there."""
    try:
        path = Path(os.environ.get("NANOCHAT_BASE_DIR") or "~/.cache/nanochat").expanduser()
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home
        remedy = "name a folder that can be written to in NANOCHAT_BASE_DIR"
        raise ConfigError(f"no folder to keep files in: {error}; {remedy}") from error
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
