"""Any data set of conversations in SmolTalk's form, with a column `messages`."""

from pathlib import Path

from nanochat.common import DataError
from nanochat.conversation import validate
from nanochat.data.hub import hub_file, hub_files
from nanochat.data.rows import TABLES, data_files
from nanochat.files import user_path
from tasks.source import hub_id, load_rows
from tasks.task import Task, check_split

HUB_CHATS = "HuggingFaceTB/smol-smoltalk"
OTHER_SPLITS = {"train": ("test", "val"), "test": ("train", "val")}


class SmolTalk(Task):
    """Conversations to learn from; there is nothing to judge, so `evaluate` is not defined.

    `source` is a hub id ("owner/name") or a local file or folder of parquet or JSON lines. Of a
    folder's files those with the split in their name are taken, or, where no name holds any split,
    all of them for "train". Raises DataError that names file and row of a malformed conversation.
    """

    def __init__(
        self,
        source: str | Path = HUB_CHATS,
        split: str = "train",
        max_malformed: float | None = None,
    ):
        check_split(split, tuple(OTHER_SPLITS))
        self.name = Path(source).stem.lower()
        self.conversations: list[dict] = []
        for path in source_files(source, split):
            self.conversations += load_rows(path, check, ["messages"], max_malformed)

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: int) -> dict:
        return self.conversations[index]


def check(row: dict, where: str) -> dict:
    validate(row, where)
    return {"messages": row["messages"]}


def source_files(source: str | Path, split: str) -> list[Path]:
    """The files of a split: local ones if `source` exists, else the hub's, downloaded."""
    path = user_path(source)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = data_files(path, TABLES)
        chosen = [p for p in found if split in p.name]
        if not chosen and split == "train":
            chosen = [p for p in found if not any(o in p.name for o in OTHER_SPLITS[split])]
        if not chosen:
            raise DataError(
                f"{path}: no file for split {split} among {len(found)} data files; "
                f"{', '.join(TABLES)} files with {split!r} in their names are read"
            )
        return chosen
    names = hub_files(hub_id(source), f"data/{split}-*.parquet")
    if not names:
        raise DataError(f"{source}: the hub has no files data/{split}-*.parquet there")
    return [hub_file(str(source), name) for name in names]
