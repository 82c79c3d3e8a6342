"""Folders that are whole or not there: a manifest of sizes and SHA-256, and an atomic rename.

A folder is written under a hidden name beside its place, gets its manifest last, and is renamed.
"""

import hashlib
import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nanochat.common import CheckpointError, print0, write_atomic

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
    try:
        text = path.read_bytes().decode()
        record = json.loads(text)
        found = record.pop("checksum")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is damaged: found {path.stat().st_size} bytes that do not parse ({error!r}), "
            f"expected JSON with a checksum"
        ) from error
    # subtle: comparing the spelling, not only the checksum, also catches damage between the values.
    if render(record) != text:
        expected = json.loads(render(record))["checksum"]
        raise CheckpointError(
            f"{path} is damaged: found checksum {found!r:.20}, its contents give {expected[:12]}"
        )
    return record


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


def publish(temporary: Path, final: Path) -> None:
    """Flushes `temporary` to disk and renames it to `final`; what stood there is moved away first.

    A crash between the renames leaves the old folder whole as `.NAME.old-PID`: standing_in_for.
    """
    for path in [*temporary.rglob("*"), temporary]:
        flush(path)
    old = final.with_name(f".{final.name}.old-{os.getpid()}")
    if final.exists():
        os.replace(final, old)
    os.replace(temporary, final)
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


def sweep(parent: Path) -> None:
    """Clears up after a crash, with a printed line each: puts moved-away folders back, deletes
    unfinished ones."""
    for path in sorted(parent.glob(".*.old-*")) if parent.is_dir() else ():
        if final := standing_in_for(path):
            print0(f"{final}: put back as it was before an interrupted save")
            os.replace(path, final)
    for path in (*parent.glob(".*.old-*"), *parent.glob(".*.tmp-*")):
        print0(f"{path}: deleted, left over from an interrupted save")
        shutil.rmtree(path)


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
