"""Any data set of conversations with a column `messages`, SmolTalk's form: from a hub, a file or a
folder."""

from pathlib import Path

from nanochat.common import DataError, print0
from nanochat.conversation import validate
from nanochat.data.sources import hub_file, hub_files, read_rows
from tasks.task import Task, check_split, in_range

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst")
OTHER_SPLITS = {"train": ("test", "val"), "test": ("train", "val")}


class SmolTalk(Task):
    """Conversations to learn from; there is nothing to judge, so `evaluate` is not defined.

    `source` is a hub id ("owner/name") or a local file or folder of parquet or JSON lines. Of a
    folder's files those with the split in their name are taken, or, where no name holds any split,
    all of them for "train". A malformed conversation is a DataError that names file and row; with
    `skip_malformed` it is left out and counted.
    """

    def __init__(
        self,
        source: str | Path = "HuggingFaceTB/smol-smoltalk",
        split: str = "train",
        *,
        skip_malformed: bool = False,
        max_conversations: int | None = None,
    ):
        check_split(split, tuple(OTHER_SPLITS))
        self.name = Path(source).stem.lower()
        self.conversations: list[dict] = []
        self.num_skipped = 0
        for path in source_files(source, split):
            for number, row in enumerate(read_rows(path), start=1):
                if max_conversations is not None and len(self.conversations) >= max_conversations:
                    break
                self.add(row, f"{path}:{number}", skip_malformed)
        if self.num_skipped:
            print0(f"{source}: {self.num_skipped:,} malformed conversations skipped")
        if not self.conversations:
            raise DataError(f"{source}: split {split} has no conversation")

    def add(self, row: dict, where: str, skip_malformed: bool) -> None:
        try:
            validate(row, where)
        except DataError:
            if not skip_malformed:
                raise
            self.num_skipped += 1
        else:
            self.conversations.append({"messages": row["messages"]})

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: int) -> dict:
        return self.conversations[in_range(index, len(self))]


def source_files(source: str | Path, split: str) -> list[Path]:
    """The files of a split: local ones if `source` is a path that exists, else the hub's,
    downloaded."""
    path = Path(source)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [p for p in sorted(path.rglob("*")) if p.is_file() and p.name.endswith(SUFFIXES)]
        chosen = of_split(found, split)
        if not chosen:
            raise DataError(
                f"{path}: no file for split {split} among {len(found)} data files; "
                f"{', '.join(SUFFIXES)} files with {split!r} in their names are read"
            )
        return chosen
    if str(source).count("/") != 1 or str(source).startswith((".", "/", "~")):
        raise DataError(f"{source}: neither a file, nor a folder, nor a hub id such as owner/name")
    names = hub_files(str(source), f"data/{split}-*.parquet")
    if not names:
        raise DataError(f"{source}: the hub has no files data/{split}-*.parquet there")
    return [hub_file(str(source), name) for name in names]


def of_split(paths: list[Path], split: str) -> list[Path]:
    named = [p for p in paths if split in p.name]
    if named or split != "train":
        return named
    return [p for p in paths if not any(other in p.name for other in OTHER_SPLITS[split])]
