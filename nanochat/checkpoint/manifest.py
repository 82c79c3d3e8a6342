"""Folders that are whole or not there: a manifest of sizes and SHA-256, and an atomic rename.

A folder is written under a hidden name beside its place, gets its manifest last, and is renamed.
The hidden name ends in the number of the process that writes, so that others leave it alone.
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
from nanochat.files import read_json, write_atomic

MANIFEST = "manifest.json"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_all(folder: Path, names: list[str]) -> dict[str, str]:
    """SHA-256 by name; four files at a time, for hashing is slower than reading."""
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(names, pool.map(lambda name: sha256_of(folder / name), names), strict=True))


def render(record: dict) -> str:
    """The manifest's only spelling: indented JSON that ends with a checksum of the rest."""
    text = json.dumps(record, indent=1)
    checksum = hashlib.sha256(text.encode()).hexdigest()
    return json.dumps({**record, "checksum": checksum}, indent=1) + "\n"


def write_manifest(folder: Path, record: dict) -> dict:
    """Hashes every file in `folder` and writes manifest.json: `record`, the time, and
    {name: {"bytes", "sha256"}}. Returns it."""
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    hashes = sha256_of_all(folder, names)
    files = {n: {"bytes": (folder / n).stat().st_size, "sha256": hashes[n]} for n in names}
    manifest = {**record, "time": time.time(), "files": files}
    write_atomic(folder / MANIFEST, render(manifest))
    return manifest


def read_manifest(folder: Path) -> dict:
    """The manifest of `folder`; CheckpointError when there is none or it is not as written."""
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing, and it is written last: {folder} is no checkpoint, or incomplete"
        )
    remedy = "Delete the folder, or restore it from a copy"
    record = read_json(path, remedy, CheckpointError)
    body = {k: v for k, v in record.items() if k != "checksum"} if isinstance(record, dict) else {}
    # subtle: comparing the spelling, not only the checksum, also catches damage between the values.
    if render(body).encode() != path.read_bytes():
        raise CheckpointError(f"{path} is damaged: its checksum does not fit its text. {remedy}")
    return body


def check(folder: Path, under: tuple[str, ...] = ("",)) -> dict:
    """Compares the files whose names start with one of `under` with the manifest; returns it.

    Raises CheckpointError naming the first file that is missing, cut short or changed.
    """
    manifest = read_manifest(folder)
    files = {n: f for n, f in manifest["files"].items() if n.startswith(under)}
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; expected {expected['bytes']:,} bytes")
        if (found := path.stat().st_size) != expected["bytes"]:
            raise CheckpointError(
                f"{path} is damaged: found {found:,} bytes, expected {expected['bytes']:,}"
            )
    for name, found in sha256_of_all(folder, list(files)).items():
        if found != files[name]["sha256"]:
            raise CheckpointError(
                f"{folder / name} is damaged: found SHA-256 {found[:12]}, "
                f"expected {files[name]['sha256'][:12]}"
            )
    return manifest


# ---------------------------------------------------------------- appear and go at once


def temporary_beside(final: Path) -> Path:
    """The hidden name under which the folder `final` is written."""
    return final.with_name(f".{final.name}.tmp-{os.getpid()}")


def publish(temporary: Path, final: Path, replace: bool = True) -> None:
    """Flushes `temporary` to disk and renames it to `final`.

    What stood there is moved away first, and a crash between the renames leaves it whole as
    `.NAME.old-PID`: see standing_in_for. replace=False: CheckpointError when something stands
    there, even if another process put it there in this moment.
    """
    for path in [*temporary.rglob("*"), temporary]:
        flush(path)
    old = final.with_name(f".{final.name}.old-{os.getpid()}")
    if replace and final.exists():
        os.replace(final, old)
    try:
        os.replace(temporary, final)  # subtle: fails where a folder with something in it stands
    except OSError as error:
        if old.exists() and not final.exists():
            os.replace(old, final)
        if final.exists() and not replace:
            raise CheckpointError(
                f"{final} exists, and it is not replaced; name another place, or remove it"
            ) from error
        raise
    flush(final.parent)
    shutil.rmtree(old, ignore_errors=True)  # what stays is hidden, and the next sweep takes it


def standing_in_for(path: Path) -> Path | None:
    """The place that the hidden `.NAME.old-PID` was moved from, if nothing took it; else None."""
    name, mark, _ = path.name.removeprefix(".").rpartition(".old-")
    if not mark or not path.name.startswith("."):
        return None
    final = path.with_name(name)
    return None if final.exists() else final


def remove(folder: Path) -> None:
    """Deletes a folder so that a crash leaves it whole or hidden, never half of it in its place."""
    hidden = temporary_beside(folder)
    os.replace(folder, hidden)
    shutil.rmtree(hidden)


def left_over(path: Path) -> bool:
    """Whether nobody writes under this hidden name any more: the process whose number it ends in
    is gone, or is this one, which sweeps before it writes. Another machine's is taken for gone."""
    number = path.name.rpartition("-")[2]
    if not re.fullmatch(r"[1-9]\d{0,8}", number) or int(number) == os.getpid():
        return True
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # alive, and another user's
        return False
    return False


def clear(path: Path) -> None:
    """Puts a folder back that was moved away, if nothing took its place; deletes any other. With a
    printed line, which also says when it cannot be done."""
    try:
        if final := standing_in_for(path):
            os.replace(path, final)
            print0(f"{final}: put back as it was before an interrupted save")
            return
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        print0(f"{path}: deleted, left over from an interrupted save")
    except FileNotFoundError:
        print0(f"{path}: another process is clearing it up")
    except OSError as error:
        print0(f"{path}: left over from an interrupted save, and it stays: {error}")


def sweep(parent: Path) -> None:
    """Clears up in a folder of our own after a crash, with a printed line each: puts moved-away
    folders back, deletes unfinished ones. What a living process writes is left alone."""
    for path in (*sorted(parent.glob(".*.old-*")), *parent.glob(".*.tmp-*")):
        if left_over(path):
            clear(path)


def sweep_beside(final: Path) -> None:
    """As sweep, of what was written beside `final` alone: in a user's folder no other hidden name
    is ours."""
    ours = re.compile(re.escape(f".{final.name}.") + r"(old|tmp)-\d+")
    found = sorted(final.parent.iterdir()) if final.parent.is_dir() else ()
    for path in found:
        if ours.fullmatch(path.name) and left_over(path):
            clear(path)


def flush(path: Path) -> None:
    """fsync of a file or a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def human_bytes(count: float) -> str:
    """1536 -> "1.5 kB" in powers of 1000, as disks are sold."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
