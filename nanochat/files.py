"""Files: where everything of ours lies, and writes that a crash leaves whole."""

import os
import tempfile
from pathlib import Path


def base_dir() -> Path:
    """$NANOCHAT_BASE_DIR, or ~/.cache/nanochat; made if it is not there."""
    path = Path(os.environ.get("NANOCHAT_BASE_DIR") or "~/.cache/nanochat").expanduser()
    path.mkdir(parents=True, exist_ok=True)
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
