"""The data of the CORE metric: the public evaluation bundle, downloaded, checked and read.

The bundle is a zip, or the folder it unpacks to: core.yaml names the tasks, eval_meta_data.csv has
the accuracy of chance in each (in percent), eval_data/ has a JSON line an example.
"""

import csv
import hashlib
import io
import json
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import yaml

from nanochat.common import DataError, on_rank0, print0
from nanochat.data.hub import with_retries
from nanochat.files import base_dir, user_path, write_atomic

BUNDLE_URL = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"
URL_VARIABLE = "NANOCHAT_EVAL_BUNDLE_URL"  # another place to download from
WAYS_OUT = (
    f"Fetch {BUNDLE_URL} on a machine with a network, and name the file with --bundle=FILE; "
    f"{URL_VARIABLE} names another address"
)
SECONDS_TO_ANSWER = 30

# What an example of each kind must have.
FIELDS = {
    "multiple_choice": {"query": str, "choices": list, "gold": int},
    "schema": {"context_options": list, "continuation": str, "gold": int},
    "language_modeling": {"context": str, "continuation": str},
}
OPTIONS = {"multiple_choice": "choices", "schema": "context_options"}
# The first 12 digits of the SHA-256, and the name without its suffix, of each file as MosaicML and
# DCLM have it.
KNOWN_FILES = Path(__file__).with_suffix(".sha256")


@dataclass(frozen=True)
class CoreTask:
    """One task of CORE, as core.yaml and eval_meta_data.csv describe it."""

    label: str
    kind: str  # a key of FIELDS
    file: str  # under eval_data/
    shots: int  # solved examples before the question
    delimiter: str = " "  # between a question and its answer
    baseline: float = 0.0  # accuracy of chance, 0..1


class Bundle:
    """The evaluation bundle at `path`, a zip or a folder.

    Example: bundle = Bundle("eval_bundle.zip"); bundle.rows(bundle.tasks()[0])[0]["query"]
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)

    def read(self, name: str) -> bytes:
        """The content of a file such as "core.yaml"."""
        try:
            root = self.path if self.path.is_dir() else zipfile.Path(self.path)
            inside = root / "eval_bundle"
            return ((inside if inside.is_dir() else root) / name).read_bytes()
        except (OSError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(
                f"{self.path}: {name} cannot be read: {error}. Expected a zip or folder with "
                f"eval_bundle/core.yaml in it. {WAYS_OUT}"
            ) from error

    def tasks(self) -> list[CoreTask]:
        """The tasks in the bundle's order."""
        lines = csv.DictReader(io.StringIO(self.read("eval_meta_data.csv").decode()))
        percent = {line["Eval Task"]: float(line["Random baseline"]) for line in lines}
        tasks = []
        for entry in yaml.safe_load(self.read("core.yaml"))["icl_tasks"]:
            label, kind = entry["label"], entry["icl_task_type"]
            if kind not in FIELDS or label not in percent:
                raise DataError(
                    f"{self.path}: task {label} is of kind {kind!r} and has baseline "
                    f"{percent.get(label)}; expected one of {[*FIELDS]}, and a line in "
                    f"eval_meta_data.csv"
                )
            delimiter = entry.get("continuation_delimiter", " ")
            shots, baseline = entry["num_fewshot"][0], percent[label] / 100
            tasks.append(CoreTask(label, kind, entry["dataset_uri"], shots, delimiter, baseline))
        return tasks

    def rows(self, task: CoreTask) -> list[dict]:
        """The examples of a task in the file's order; DataError naming a bad line."""
        rows = []
        for number, line in enumerate(self.read(f"eval_data/{task.file}").splitlines(), 1):
            try:
                rows.append(json.loads(line))
                problem = wrong_with(rows[-1], task.kind)
            except json.JSONDecodeError as error:
                problem = f"no JSON: {error}"
            if problem:
                raise DataError(f"{self.path}, {task.file}:{number}: {problem}")
        return rows

    def changed_files(self) -> list[str]:
        """The files whose content is not the known one."""
        files = ["core.yaml", "eval_meta_data.csv", *(f"eval_data/{t.file}" for t in self.tasks())]
        known = set(KNOWN_FILES.read_text(encoding="utf-8").splitlines())
        digest = {name: hashlib.sha256(self.read(name)).hexdigest()[:12] for name in files}
        return sorted(n for n in files if f"{digest[n]}  {Path(n).stem}" not in known)


def wrong_with(row: object, kind: str) -> str | None:
    """What is wrong with an example, None if nothing is."""
    for field, form in FIELDS[kind].items():
        if not isinstance(row, dict) or not isinstance(row.get(field), form):
            return f"found no {field} ({form.__name__}) in {str(row)[:80]!r}"
    if kind in OPTIONS and not 0 <= row["gold"] < len(row[OPTIONS[kind]]):
        return f"gold is {row['gold']}, expected 0 to {len(row[OPTIONS[kind]]) - 1}"
    if "continuation" in FIELDS[kind] and not row["continuation"].strip():
        return "the continuation is empty"
    return None


def find_bundle(where: str | Path | None = None) -> Bundle:
    """The bundle at `where`; by default the public one, downloaded once. All ranks call it. A line
    names each file that differs from the known one."""
    if where is not None and not user_path(where).exists():
        raise DataError(f"--bundle={where}: there is no such file or folder. {WAYS_OUT}")
    path = user_path(where) if where else base_dir() / "eval_bundle" / "eval_bundle.zip"
    on_rank0(lambda: path.exists() or download(os.environ.get(URL_VARIABLE) or BUNDLE_URL, path))
    bundle = Bundle(path)
    for name in bundle.changed_files():
        print0(f"{path}: {name} is not the known file: published figures may not compare")
    return bundle


def download(url: str, path: Path) -> None:
    """Fetches the bundle (8 MB); it gets its name once the CRC of every member is right."""
    from huggingface_hub.utils import get_session

    def fetch() -> bytes:
        response = get_session().get(url, timeout=SECONDS_TO_ANSWER)
        response.raise_for_status()
        try:
            damaged = zipfile.ZipFile(io.BytesIO(response.content)).testzip()
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise DataError(f"not a whole zip file: {error}") from error
        if damaged:
            raise DataError(f"{damaged} in it is damaged")
        return response.content

    write_atomic(path, with_retries(url, fetch, WAYS_OUT))
    print0(f"{path}: {path.stat().st_size / 1e6:.1f} MB downloaded, CRC of all files right")
