"""The data of the CORE metric: the public evaluation bundle, downloaded, checked and read.

The bundle is a zip, or the folder it unpacks to: core.yaml names the tasks, eval_meta_data.csv has
the accuracy that chance reaches in each (in percent), eval_data/ has a JSON line an example. See
core.py for what is made of them.
"""

import csv
import hashlib
import http.client
import io
import json
import os
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import yaml

from nanochat.common import DataError, barrier, print0, progress, rank_and_world
from nanochat.files import base_dir

BUNDLE_URL = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"
URL_VARIABLE = "NANOCHAT_EVAL_BUNDLE_URL"  # another place to download from
ATTEMPTS, SECONDS_BETWEEN, SECONDS_TO_ANSWER = 5, 0.5, 30.0
GONE = (401, 403, 404, 410)  # answers that another try does not change

# What an example of each kind must have.
FIELDS = {
    "multiple_choice": {"query": str, "choices": list, "gold": int},
    "schema": {"context_options": list, "continuation": str, "gold": int},
    "language_modeling": {"context": str, "continuation": str},
}
OPTIONS = {"multiple_choice": "choices", "schema": "context_options"}

# SHA-256 and name (without .jsonl, ...) of the files as MosaicML and DCLM have them.
KNOWN_FILES = """
32a5c33c84522556992443a064c9e8e7f698338af92c832c70a639227785d61f core
3d8191d45cc64a809c4514a3a03e94c50599e843cf87cadaa0e687a042117018 eval_meta_data
2771f63f8127c0725b1f6b0ef2cd2ef6469168ae5875fc8d276b25b4f32c8c1a commonsense_qa
595dca44dec54c849490bd403a3e24a29e3b944065783222ebb0eb1a55298846 copa
adb2e5c7f8db810ddad4d6b2bf53dcc86dcc545499f7aafcaf42a8e179476c09 openbook_qa
d2870e73aec5154df3faf259b7700876e11608eebdf69e9d6667435673dbe4e0 piqa
80c98d8e7ab8213513d1643886229c05c40a6837353b07c19ac7bd860668954e bigbench_language_identification
52a31d32b14dff7713a705be664cbeff77eb66edcf7f8b0a5e9408633929b448 hellaswag
411bfbe5b9054346b6a19299c0242670adbefb9162efd958593cbc0290b8c9dc lambada_openai
746336c27cd2e39a554cb1b8b4869d0f1ae2577ac5bfe799842d26bca5a5bf5e winograd_wsc
ea1592526f3bfdd0948ed3acb1b4dfa3f83d23698917118688ee1df7f8d4b8d7 winogrande
454ff101e614370bb1807fe7ebbda6fdb57e794b9662cc1ccae211bf1ff626c8 boolq
0c2b8029776a138f755d065b9506eb8e91bbd38c44dce321a75f9987bb7875aa coqa
41fe6c43e725c0dc9161465066932c46edc390bf4019c361c500bbc4b766a350 squad
9ffd73480b51746c11627e56239f8b87035eb255cb92c3a58fd64e2e4b65fb56 agi_eval_lsat_ar
8485683a8c7e7e6c9fc6ca3cc81140fd85edb27f34406a6736d1539cf7ebcb3a bigbench_cs_algorithms
106ba9ac7507c7ab385c5e59c49cd57aa83025abf080d9b2a2661c0d6c6dbcc5 bigbench_dyck_languages
41e2964ad619c49edd97c22b2c50f922a0241255d906a754bf81a20f4f66b85f bigbench_operators
8febd2c0080a15680cd17f92bfa30d87abcfac021e646e55d0b8ad69f0cfa767 bigbench_repeat_copy_logic
1ae3aeedf1951d881cbd5c2e3a31e78a1993d251479afbe4cb413b6707244636 arc_challenge
d2d12e59543acf9a5ef6079634a72b30215e36c2fd4236fff3bc855d287b87f5 arc_easy
bb0d22727cb25beffb022c8e8c0c3e1159c8b3c7bd7284603c0d6491f8616265 bigbench_qa_wikidata
187e7f270a440c63d6cf11a57459fdc7e0bce889338225e42cc88e24ee13d52e jeopardy_all
"""


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
        self.prefix = "eval_bundle/"
        if self.path.is_dir() and (self.path / "core.yaml").exists():
            self.prefix = ""  # the folder eval_bundle itself

    def read(self, name: str) -> bytes:
        """The content of a file such as "core.yaml"; a zip checks its CRC on the way."""
        try:
            if self.path.is_dir():
                return (self.path / f"{self.prefix}{name}").read_bytes()
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(f"{self.prefix}{name}")
        except (OSError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(
                f"{self.path}: {name} cannot be read: {error}. Expected the evaluation bundle of "
                f"CORE, a zip or folder with eval_bundle/core.yaml in it; {OFFLINE}"
            ) from error

    def tasks(self) -> list[CoreTask]:
        """The tasks in the bundle's order; raises DataError for a task that lacks something."""
        lines = csv.DictReader(io.StringIO(self.read("eval_meta_data.csv").decode()))
        percent = {line["Eval Task"]: float(line["Random baseline"]) for line in lines}
        tasks = []
        for entry in yaml.safe_load(self.read("core.yaml"))["icl_tasks"]:
            label, kind = entry["label"], entry["icl_task_type"]
            if kind not in FIELDS or label not in percent:
                raise DataError(
                    f"{self.path}: task {label} is of kind {kind!r} and has "
                    f"{'a' if label in percent else 'no'} baseline; expected one of "
                    f"{', '.join(FIELDS)}, and a line in eval_meta_data.csv"
                )
            shots, delimiter = entry["num_fewshot"][0], entry.get("continuation_delimiter", " ")
            baseline = percent[label] / 100
            tasks.append(CoreTask(label, kind, entry["dataset_uri"], shots, delimiter, baseline))
        return tasks

    def rows(self, task: CoreTask) -> list[dict]:
        """The examples of a task, in the file's order; raises DataError naming a bad line."""
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
        """Names of the known files whose content is not the known one."""
        files = ["core.yaml", "eval_meta_data.csv", *(f"eval_data/{t.file}" for t in self.tasks())]
        known = {name: digest for digest, name in map(str.split, KNOWN_FILES.split("\n")[1:-1])}
        digests = {name: hashlib.sha256(self.read(name)).hexdigest() for name in files}
        return sorted(name for name in digests if digests[name] != known.get(Path(name).stem))


def wrong_with(row: object, kind: str) -> str | None:
    """What an example lacks; None for a good one."""
    for field, form in FIELDS[kind].items():
        if not isinstance(row, dict) or not isinstance(row.get(field), form):
            return f"found no {field} ({form.__name__}) in {str(row)[:80]!r}"
    if kind in OPTIONS and not 0 <= row["gold"] < len(row[OPTIONS[kind]]):
        return f"gold is {row['gold']}, expected 0 to {len(row[OPTIONS[kind]]) - 1}"
    if "continuation" in FIELDS[kind] and not row["continuation"].strip():
        return "the continuation is empty"
    return None


# ---------------------------------------------------------------- finding and downloading

OFFLINE = (
    f"fetch {BUNDLE_URL} on a machine with a network, and name the file with --bundle=FILE; "
    f"{URL_VARIABLE} names another address"
)


def find_bundle(where: str | None = None) -> Bundle:
    """The bundle at `where`, a zip or folder; by default the public one, downloaded once into
    base_dir()/eval_bundle. All ranks call it, rank 0 downloads.

    A file that differs from the known one is named. Raises
    DataError with the ways out when it is not there, not whole, or cannot be downloaded.
    """
    if where is not None and not Path(where).exists():
        raise DataError(f"--bundle={where}: there is no such file or folder; {OFFLINE}")
    path = Path(where) if where else base_dir() / "eval_bundle" / "eval_bundle.zip"
    failure = None
    if not path.exists() and rank_and_world()[0] == 0:
        try:
            download(os.environ.get(URL_VARIABLE) or BUNDLE_URL, path)
        except (DataError, OSError) as error:
            failure = error
    barrier()  # subtle: rank 0 comes here even when it failed, for the others wait
    if failure:
        raise failure
    bundle = Bundle(path)
    for name in bundle.changed_files():
        print0(f"{path}: {name} is not the known file: published figures may not compare")
    return bundle


def download(url: str, path: Path, wait: float = SECONDS_BETWEEN) -> None:
    """Fetches a zip to `path`: what a broken connection, or another run, has left in
    `path`.partial is gone on from; every member's CRC is tested before the file gets its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    last: Exception | None = None
    for attempt in range(ATTEMPTS):
        if attempt:
            print0(f"{url}: {last}; trying again in {wait:g} s")
            time.sleep(wait)
            wait *= 2
        try:
            continue_download(url, partial)
            check_zip(partial)
        except urllib.error.HTTPError as error:
            last = error
            if error.code in GONE:
                break
        except zipfile.BadZipFile as error:
            last = error
            partial.unlink()  # what was there before may be another file's beginning
        except (OSError, http.client.HTTPException) as error:
            last = error
        else:
            partial.replace(path)
            print0(f"{path}: {path.stat().st_size / 1e6:.1f} MB downloaded, CRC of all files right")
            return
    raise DataError(
        f"{url} could not be downloaded, tried {attempt + 1} times: {last}. Without a network, "
        f"{OFFLINE}"
    ) from last


def continue_download(url: str, partial: Path) -> None:
    """Appends what `partial` still lacks of the file at `url`; raises OSError when the connection
    ends early."""
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=SECONDS_TO_ANSWER)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is left to send: check_zip tells if that is right
            return
        raise
    with response, partial.open("ab" if response.status == 206 else "wb") as file:
        if (left := response.headers["Content-Length"]) is None:
            raise OSError("the server does not say how long the file is")
        have = file.tell()
        expected = have + int(left)
        with progress("evaluation bundle", expected, "bytes") as advance:
            advance(have)
            # subtle: read(n) does not complain about a connection that ends early
            while block := response.read(1 << 16):
                file.write(block)
                have += len(block)
                advance(len(block))
    if have < expected:
        raise OSError(f"the connection ended after {have:,} of {expected:,} bytes")


def check_zip(path: Path) -> None:
    """Raises zipfile.BadZipFile, naming the member, unless the whole zip reads back right."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            try:
                archive.read(name)
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise zipfile.BadZipFile(f"{name} in {path.name} is damaged: {error}") from error
