"""A second copy of every checkpoint, on another disk or on the hub, made in the background."""

import hashlib
import queue
import shutil
import threading
import time
from pathlib import Path

from nanochat.checkpoint.manifest import (
    MANIFEST,
    check,
    flush,
    publish,
    read_manifest,
    sha256_of,
    sweep,
    temporary_beside,
)
from nanochat.common import CheckpointError, print0, rank_and_world
from nanochat.files import base_dir

HUB = "hf://"


def place_in_mirror(path: Path) -> Path:
    """<stage>_checkpoints/<tag>/step_<n>: as under the base folder, so that it can serve as one."""
    return Path(*path.resolve().parts[-3:])


def copy_to_folder(path: Path, root: Path) -> None:
    """Copies the checkpoint `path` under `root`, verifies the copy, renames it into place."""
    final = root / place_in_mirror(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    sweep(final.parent)
    temporary = temporary_beside(final)
    try:
        for name in (*read_manifest(path)["files"], MANIFEST):
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path / name, temporary / name)
            flush(temporary / name)
        check(temporary)
        publish(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # gone already when all went well


def copy_to_hub(path: Path, repo_id: str) -> None:
    """Uploads the checkpoint in one commit and compares what arrived; a new repository is
    private."""
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repo_id, private=True, exist_ok=True)
    place, names = place_in_mirror(path).as_posix(), [*read_manifest(path)["files"], MANIFEST]
    api.upload_folder(
        repo_id=repo_id,
        folder_path=path,
        path_in_repo=place,
        allow_patterns=names,
        commit_message=f"mirror {place}",
    )
    there = {
        file.path: file for file in api.get_paths_info(repo_id, [f"{place}/{n}" for n in names])
    }
    for name in names:
        check_arrived(path / name, there.get(f"{place}/{name}"), f"{repo_id}: {place}/{name}")


def check_arrived(path: Path, file, what: str) -> None:
    """CheckpointError unless `file`, what the hub says of `what`, is as it is here, at `path`."""
    if file is None:
        raise CheckpointError(f"{what} is not there after the upload; give the command again")
    # The hub knows large files by SHA-256 and small ones by git's object id.
    found = file.lfs.sha256 if file.lfs else file.blob_id
    expected = sha256_of(path) if file.lfs else git_object_id(path.read_bytes())
    if found != expected:
        raise CheckpointError(
            f"{what} arrived as {found[:12]}, expected {expected[:12]}; give the command again"
        )


def git_object_id(data: bytes) -> str:
    """The name git gives to a file: SHA-1 of a header and its bytes. b"" -> e69de29b..."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Mirror:
    """Copies each checkpoint pushed to it to `spec`, a folder or hf://user/repo, and verifies it;
    one at a time, in a thread.

    A copy that fails is tried again after each of `waits` seconds. Ranks other than 0 do nothing.

    Example: mirror = Mirror("/mnt/drive"); mirror.push(save_checkpoint(...)); mirror.close()
    """

    def __init__(self, spec: str, waits: tuple[float, ...] = (2, 10, 60)):
        self.spec, self.waits = spec, waits
        self.failure: CheckpointError | None = None
        self.pending: queue.Queue[Path | None] = queue.Queue()
        self.thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        if spec.startswith(HUB):
            if len([part for part in spec.removeprefix(HUB).split("/") if part]) != 2:
                raise CheckpointError(f"mirror {spec!r}: expected hf://user/repo")
            self.copy = lambda path: copy_to_hub(path, spec.removeprefix(HUB).strip("/"))
        else:
            root = Path(spec).expanduser()
            if root.resolve() == base_dir().resolve():
                raise CheckpointError(
                    f"mirror {root} is the base folder itself; name another place"
                )
            self.copy = lambda path: copy_to_folder(path, root)
        if rank_and_world()[0] == 0:
            self.thread.start()

    def push(self, path: Path | str) -> None:
        """Puts a checkpoint in the queue and returns at once."""
        if rank_and_world()[0] == 0:
            assert self.thread.is_alive(), "pushed to a mirror that is closed"
            self.pending.put(Path(path))

    def close(self) -> None:
        """Waits until all that was pushed is copied; CheckpointError when the last push failed."""
        if self.thread.is_alive():
            if self.pending.unfinished_tasks:
                print0(f"mirror: waiting for the copy to {self.spec}")
            self.pending.put(None)
            self.thread.join()
        if self.failure:
            raise self.failure

    def _work(self) -> None:
        while (path := self.pending.get()) is not None:
            try:
                self.failure = self._copy_with_retries(path)
            finally:
                self.pending.task_done()

    def _copy_with_retries(self, path: Path) -> CheckpointError | None:
        """None when the copy stands; else what went wrong at the last try."""
        for wait in (*self.waits, None):
            try:
                self.copy(path)
                print0(f"mirror: {path.name} copied to {self.spec} and verified")
                return None
            # subtle: the hub's client raises many kinds; none may end the thread, and none is lost.
            except Exception as error:
                if not path.exists():
                    print0(f"mirror: {path} was pruned before it was copied to {self.spec}")
                    return self.failure
                then = "giving up" if wait is None else f"trying again in {wait} s"
                print0(f"mirror: {path.name} not copied to {self.spec}: {error!r}; {then}")
                reason = error
            if wait is not None:
                time.sleep(wait)
        failure = CheckpointError(f"{path} could not be mirrored to {self.spec}: {reason}")
        failure.__cause__ = reason
        return failure
