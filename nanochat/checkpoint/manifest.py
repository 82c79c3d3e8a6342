"""Folders that are whole or not there: a manifest of sizes and SHA-256, and an atomic rename.

A folder is written under a hidden name, which ends in the process's number, so that others leave
it alone; it gets its manifest last, and is renamed.
"""

import hashlib
import json
import os
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nanochat.common import CheckpointError, print0
from nanochat.files import read_json, sha256_of, write_atomic

MANIFEST = "manifest.json"
HIDDEN = re.compile(r"\.(.+)\.(old|tmp)-([1-9]\d{0,8})")  # name, kind, process


def sha256_of_all(folder: Path, names: list[str]) -> dict[str, str]:
    """SHA-256 by name; four files at a time, because hashing is slower than reading."""
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(names, pool.map(lambda name: sha256_of(folder / name), names), strict=True))


def render(record: dict) -> str:
    """The manifest's only spelling: indented JSON that ends with a checksum of the rest."""
    text = json.dumps(record, indent=1)
    checksum = hashlib.sha256(text.encode()).hexdigest()
    return json.dumps({**record, "checksum": checksum}, indent=1) + "\n"


def write_manifest(folder: Path, record: dict) -> dict:
    """Hashes every file in `folder`, writes manifest.json, and returns it: `record`, "time", and
    "files": {name: {"bytes", "sha256"}}."""
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    hashes = sha256_of_all(folder, names)
    files = {n: {"bytes": (folder / n).stat().st_size, "sha256": hashes[n]} for n in names}
    manifest = {**record, "time": time.time(), "files": files}
    write_atomic(folder / MANIFEST, render(manifest))
    return manifest


def read_manifest(folder: Path) -> dict:
    """The manifest of `folder`; CheckpointError when it is missing or damaged."""
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing, and it is written last: {folder} is no checkpoint, or incomplete"
        )
    remedy = "Delete the folder, or restore it from a copy"
    record = read_json(path, remedy, CheckpointError)
    body = {k: v for k, v in record.items() if k != "checksum"} if isinstance(record, dict) else {}
    # subtle: comparing the spelling also catches damage between the values.
    if render(body).encode() != path.read_bytes():
        raise CheckpointError(f"{path} is damaged: its checksum does not fit its text. {remedy}")
    return body


def check(folder: Path) -> None:
    """Compares every file with the manifest; CheckpointError names the first that differs."""
    files = read_manifest(folder)["files"]
    for name, expected in files.items():
        path, size = folder / name, expected["bytes"]
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; expected {size:,} bytes")
        if (found := path.stat().st_size) != size:
            raise CheckpointError(f"{path} is damaged: found {found:,} bytes, expected {size:,}")
    for name, found in sha256_of_all(folder, list(files)).items():
        if found != (expected := files[name]["sha256"]):
            raise CheckpointError(
                f"{folder / name} is damaged: found SHA-256 {found[:12]}, expected {expected[:12]}"
            )


def temporary_beside(final: Path) -> Path:
    """The hidden name under which the folder `final` is written."""
    return final.with_name(f".{final.name}.tmp-{os.getpid()}")


def publish(temporary: Path, final: Path, replace: bool = True) -> None:
    """Flushes `temporary` to disk and renames it to `final`, in place of what stands there, which
    is `.NAME.old-PID` meanwhile. replace=False: CheckpointError if something stands there, even if
    it came just now."""
    for path in [*temporary.rglob("*"), temporary]:
        fsync(path)
    old = final.with_name(f".{final.name}.old-{os.getpid()}")
    try:
        if replace and final.exists():
            os.replace(final, old)
        os.replace(temporary, final)  # subtle: fails where a folder with something in it stands
    except OSError as error:
        if replace or not final.exists():
            raise
        raise CheckpointError(
            f"{final} exists, and it is not replaced; name another place, or remove it"
        ) from error
    finally:
        if vacated_place(old):
            os.replace(old, final)
    fsync(final.parent)
    shutil.rmtree(old, ignore_errors=True)  # the next sweep takes what stays


def remove(folder: Path) -> None:
    """Deletes a folder, which a crash leaves whole or hidden."""
    hidden = temporary_beside(folder)
    os.replace(folder, hidden)
    shutil.rmtree(hidden)


def is_alive(pid: int) -> bool:
    """Whether another process has this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return pid != os.getpid()


def vacated_place(path: Path) -> Path | None:
    """Where `.NAME.old-PID` belongs, if a crash came before its replacement; else None."""
    match = HIDDEN.fullmatch(path.name)
    final = path.with_name(match[1]) if match and match[2] == "old" else None
    return final if final and path.exists() and not (final / MANIFEST).exists() else None


def sweep(parent: Path, name: str | None = None) -> None:
    """Clears up after interrupted saves, with a printed line each: puts back what was to be
    replaced, if it was not, and deletes the rest. What a living process writes is left alone.
    name: the only folder to sweep for, where others may not be ours."""
    for path in parent.glob(".*"):
        match = HIDDEN.fullmatch(path.name)
        if not match or name not in (None, match[1]) or is_alive(int(match[3])):
            continue
        final = vacated_place(path)
        try:
            os.replace(path, final) if final else shutil.rmtree(path)
        except OSError as error:  # another process may sweep, too
            print0(f"{path}: left over from an interrupted save, not cleared up: {error}")
        else:
            done = "put back as it was before" if final else "deleted, left over from"
            print0(f"{final or path}: {done} an interrupted save")


def fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
