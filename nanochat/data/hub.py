"""Files of a model hub: downloaded with huggingface_hub, tried again, checked."""

import os
import sys
import time
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

from nanochat.common import DataError, print0
from nanochat.files import sha256_of

ATTEMPTS = 8  # for a file of a hub that answers
SECONDS_TO_CONNECT = 10.0  # after this a hub where nobody answers is given up
GONE = (401, 403, 404)  # answers that another try does not change


def faults() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises when the network or the hub fails."""
    from huggingface_hub import errors

    # RuntimeError: hf_xet's. subtle: the library has imported its HTTP client, which differs by
    # version.
    clients = [sys.modules[name] for name in ("httpx", "httpx2") if name in sys.modules]
    return (OSError, RuntimeError, errors.HfHubHTTPError, *(c.HTTPError for c in clients))


def with_retries(what: str, function: Callable[[], object], ways_out: str | None = None):
    """function(), tried again after network faults and after a DataError (what came is damaged);
    DataError with the ways out if they stay."""
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    ways_out = ways_out or (
        f"No local folder has that name. The hub is {os.environ.get('HF_ENDPOINT', 'the default')}:"
        " name a mirror in HF_ENDPOINT, or work offline with --data=packaged or --data=FOLDER"
    )
    start = time.monotonic()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return function()
        except (*faults(), DataError) as error:
            last, cause = error, error.__cause__ or error
        status = getattr(getattr(last, "response", None), "status_code", None)
        kind = type(cause).__name__
        offline = "Offline" in kind  # HF_HUB_OFFLINE=1
        late = "Connect" in kind and time.monotonic() - start >= SECONDS_TO_CONNECT
        if status in GONE or attempt == ATTEMPTS or offline or late:
            break
        wait = min(0.25 * 2**attempt, 15)
        print0(f"{what}: {type(last).__name__}; trying again in {wait:g} s")
        time.sleep(wait)
    reason = f"tried {attempt} times; the last error was {kind}: {cause}"
    if status in GONE:
        reason = f"the server answers {status}: not there, or not open to this account"
    raise DataError(f"{what}: {reason}. {ways_out}") from last


def hub_file(repo_id: str, filename: str) -> Path:
    """A file of a hub data set on this disk: downloaded if it is not there yet, and again if its
    SHA-256 is not the hub's. Honours HF_ENDPOINT and HF_HOME."""
    from huggingface_hub import hf_hub_download

    def fetch() -> Path:
        path = Path(hf_hub_download(repo_id, filename, repo_type="dataset"))
        blob = path.resolve()
        # the cache names large files by their SHA-256
        if len(blob.name) == 64 and (found := sha256_of(blob)) != blob.name:
            blob.unlink(missing_ok=True)  # else the next try would find it
            raise DataError(f"{path}: its SHA-256 is {found}, the hub says {blob.name}")
        return path

    return with_retries(f"{repo_id}/{filename}", fetch)


def hub_files(repo_id: str, pattern: str) -> list[str]:
    """Names of the files of a hub data set that match a glob, sorted."""
    from huggingface_hub import HfApi

    names = with_retries(repo_id, lambda: HfApi().list_repo_files(repo_id, repo_type="dataset"))
    return sorted(name for name in names if fnmatch(name, pattern))
