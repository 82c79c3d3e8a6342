"""A second copy of every checkpoint, on another disk or on the hub, made in the background."""

import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from nanochat.checkpoint import manifest
from nanochat.common import CheckpointError, print0
from nanochat.files import base_dir, sha256_of, user_path

HUB = "hf://"
WAITS = (2, 10, 60)  # seconds before a copy that failed is tried again


def place_in_mirror(path: Path) -> Path:
    """<stage>_checkpoints/<tag>/step_<n>, as under the base folder: a mirror can serve as one."""
    return Path(*path.resolve().parts[-3:])


def copy_to_folder(path: Path, root: Path) -> None:
    """Copies the checkpoint `path` under `root`, verifies the copy, renames it into place."""
    final = root / place_in_mirror(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    manifest.sweep(final.parent)
    temporary = manifest.temporary_beside(final)
    try:
        for name in (*manifest.read_manifest(path)["files"], manifest.MANIFEST):
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path / name, temporary / name)
        manifest.check(temporary)
        manifest.publish(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # gone already when all went well


def copy_to_hub(path: Path, repo_id: str) -> None:
    """Uploads the checkpoint; a new repository is private."""
    from huggingface_hub import HfApi

    HfApi().create_repo(repo_id, private=True, exist_ok=True)
    place = place_in_mirror(path).as_posix()
    names = [*manifest.read_manifest(path)["files"], manifest.MANIFEST]
    upload(path, names, repo_id, place, commit_message=f"mirror {place}")


def upload(path: Path, names: list[str], repo_id: str, place: str = "", **options) -> None:
    """Uploads files of the folder `path` to the folder `place` of a repository, in one commit, and
    verifies what arrived. options: of upload_folder."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils.sha import git_hash

    api = HfApi()
    where = {"path_in_repo": place or None, "allow_patterns": names}
    api.upload_folder(repo_id=repo_id, folder_path=path, **where, **options)
    there = {name: f"{place}/{name}".lstrip("/") for name in names}
    arrived = {file.path: file for file in api.get_paths_info(repo_id, [*there.values()])}
    for name in names:
        # The hub knows large files by SHA-256 and small ones by git's object id.
        file = arrived.get(there[name])
        if file and file.lfs:
            found, here = file.lfs.sha256, sha256_of(path / name)
        else:
            found, here = file and file.blob_id, git_hash((path / name).read_bytes())
        if found != here:
            what = f"{repo_id}: {there[name]} arrived as {found}, expected {here}"
            raise CheckpointError(f"{what}; give the command again")


class Mirror:
    """Copies each checkpoint pushed to it to `spec`, a folder or hf://user/repo, and verifies it;
    one at a time, in a thread.

    Example: mirror = Mirror("/mnt/drive"); mirror.push(path); mirror.close()
    """

    def __init__(self, spec: str):
        self.spec = spec
        if spec.startswith(HUB):
            self.copy, self.place = copy_to_hub, spec.removeprefix(HUB).strip("/")
            if self.place.count("/") != 1:
                raise CheckpointError(f"mirror {spec!r}: expected hf://user/repo")
        else:
            self.copy, self.place = copy_to_folder, user_path(spec)
            if self.place.resolve() == base_dir().resolve():
                raise CheckpointError(f"mirror {spec} is the base folder itself; name another")
        self.pool = ThreadPoolExecutor(1)
        self.newest: Future | None = None

    def push(self, path: Path) -> None:
        """Puts a checkpoint in the queue and returns at once."""
        self.newest = self.pool.submit(self._copy_with_retries, path)

    def close(self) -> None:
        """Waits until all that was pushed is copied; CheckpointError when the last push failed."""
        if self.newest and not self.newest.done():
            print0(f"mirror: waiting for the copy to {self.spec}")
        self.pool.shutdown()
        if self.newest:
            self.newest.result()

    def _copy_with_retries(self, path: Path) -> None:
        for wait in (*WAITS, None):
            try:
                self.copy(path, self.place)
                print0(f"mirror: {path.name} copied to {self.spec} and verified")
                return
            # subtle: the hub's client raises many kinds; none is lost.
            except Exception as error:
                if not path.exists():
                    print0(f"mirror: {path} was pruned before it was copied to {self.spec}")
                    return
                then = "giving up" if wait is None else f"trying again in {wait} s"
                print0(f"mirror: {path.name} not copied to {self.spec}: {error!r}; {then}")
                if wait is None:
                    raise CheckpointError(
                        f"{path} could not be mirrored to {self.spec}: {error}"
                    ) from error
                time.sleep(wait)
