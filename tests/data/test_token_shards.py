"""token_shards.py: text is tokenized once, whatever happens meanwhile."""

import json
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from nanochat.common import DataError
from nanochat.conversation import render
from nanochat.data import token_shards
from nanochat.data.packing import plan_rows
from nanochat.data.sources import open_source
from nanochat.data.token_shards import tokenize_conversations, tokenize_source
from nanochat.tokenizer import Tokenizer

TEXTS = ["a first text, not long", "", "another <|bos|> text", "ünïcödé 漢字 🙂", "the end " * 20]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, vocab_size=320)


@dataclass
class Pieces:
    """A shard in memory that counts how often it is read, and can fail in the middle."""

    name: str
    content: list[str]
    reads: int = 0
    fails: bool = False

    def fetch(self) -> None:
        pass

    def texts(self, held_out=frozenset()):
        self.reads += 1
        yield self.content[0]
        if self.fails:
            raise DataError(f"{self.name} is broken")
        yield from self.content[1:]


@dataclass
class Collection:
    """A source in memory."""

    parts: list[Pieces]
    name: str = "owner/some name"
    fingerprint: str = "0123456789abcdef"
    counts: dict = field(default_factory=dict)

    def shards(self, split: str) -> list[Pieces]:
        return self.parts if split == "train" else []


def collection() -> Collection:
    return Collection([Pieces("a", TEXTS[:2]), Pieces("b/b.txt", TEXTS[2:]), Pieces("c", ["x"])])


def documents(shards) -> list[list[int]]:
    return [
        shard.tokens[a:b].tolist()
        for shard in shards.shards
        for a, b in zip(shard.offsets[:-1], shard.offsets[1:], strict=True)
    ]


# ---------------------------------------------------------------- text


@pytest.mark.parametrize("chunk_chars", [1, 30, 10_000])
def test_documents_are_the_ids_of_the_texts(tokenizer, monkeypatch, chunk_chars):
    monkeypatch.setattr(token_shards, "CHUNK_CHARS", chunk_chars)
    shards = tokenize_source(collection(), tokenizer, "train")
    expected = [tokenizer.encode_ordinary(text) for text in [*TEXTS, "x"]]
    assert documents(shards) == expected
    assert shards.num_tokens == sum(map(len, expected))
    assert {shard.tokens.dtype for shard in shards.shards} == {np.dtype(np.uint16)}


def test_large_vocabulary_takes_four_bytes(base_dir):
    tokenizer = Tokenizer.train(TEXTS, vocab_size=65536 + 64)
    shards = tokenize_source(collection(), tokenizer, "train")
    assert documents(shards)[2] == tokenizer.encode_ordinary(TEXTS[2])
    files = [p for p in base_dir.rglob("*.uint32")]
    assert sum(p.stat().st_size for p in files) == 4 * shards.num_tokens


def test_folder_is_named_after_source_tokenizer_and_data(tokenizer, base_dir):
    tokenize_source(collection(), tokenizer, "train")
    folder = base_dir / "tokens" / f"owner-some-name-{tokenizer.fingerprint[:12]}-0123456789ab"
    assert {p.name for p in folder.iterdir()} == {
        ".lock",
        *(f"train-0000{i}.uint16" for i in range(3)),
        *(f"train-0000{i}.offsets.npy" for i in range(3)),
    }


def test_local_folder(tokenizer, tmp_path, capsys):
    """A real source: three files of JSON lines, the last being the validation split."""
    folder = tmp_path / "my texts"
    folder.mkdir()
    for i, text in enumerate(TEXTS[2:]):
        rows = [{"text": text}, {"title": "no text"}, {"text": f"number {i}"}]
        (folder / f"{i}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    source = open_source(str(folder))
    expected = [t for i, text in enumerate(TEXTS[2:4]) for t in (text, f"number {i}")]
    found = documents(tokenize_source(source, tokenizer, "train"))
    assert [tokenizer.decode(ids) for ids in found] == expected
    assert "3 rows without text" in capsys.readouterr().out
    found = documents(tokenize_source(source, tokenizer, "val"))
    assert [tokenizer.decode(ids) for ids in found] == [TEXTS[4], "number 2"]


def test_second_run_reads_no_text(tokenizer):
    source = collection()
    first = tokenize_source(source, tokenizer, "train")
    again = tokenize_source(source, tokenizer, "train")
    assert documents(first) == documents(again)
    assert [part.reads for part in source.parts] == [1, 1, 1]


def test_failed_run_continues_with_the_shard_that_failed(tokenizer, base_dir):
    source = collection()
    source.parts[1].fails = True
    with pytest.raises(DataError, match="broken"):
        tokenize_source(source, tokenizer, "train")
    assert not list(base_dir.rglob("*.partial"))
    source.parts[1].fails = False
    shards = tokenize_source(source, tokenizer, "train")
    assert documents(shards)[2] == tokenizer.encode_ordinary(TEXTS[2])
    assert [part.reads for part in source.parts] == [1, 2, 1]


def test_killed_run_continues(tokenizer, base_dir, monkeypatch):
    """SIGKILL in the middle of the second shard: the first is kept, the rest is made anew."""
    monkeypatch.setattr(token_shards, "CHUNK_CHARS", 1)
    source = collection()

    def run() -> None:
        source.parts[1].content = iter_then_wait()
        tokenize_source(source, tokenizer, "train")

    class iter_then_wait(list):
        def __getitem__(self, key):
            if key == 0:
                return TEXTS[2]
            time.sleep(60)

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    while not list(base_dir.rglob(".train-00001.partial")):
        assert child.is_alive()
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    shards = tokenize_source(source, tokenizer, "train")
    assert documents(shards) == [tokenizer.encode_ordinary(text) for text in [*TEXTS, "x"]]
    assert [part.reads for part in source.parts] == [0, 1, 1]
    assert not list(base_dir.rglob("*.partial"))


def test_two_runs_at_once_share_the_work(tokenizer):
    source = collection()
    results = []
    runs = [
        threading.Thread(target=lambda: results.append(tokenize_source(source, tokenizer, "train")))
        for _ in range(2)
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert documents(results[0]) == documents(results[1])
    assert [part.reads for part in source.parts] == [1, 1, 1]


def local_rank_main(rank: int, tokenizer, folder: Path) -> None:
    """One of two ranks, each the first of a node with a disk of its own."""
    os.environ |= {"LOCAL_RANK": "0", "NANOCHAT_BASE_DIR": str(folder / f"node{rank}")}
    torch.distributed.init_process_group("gloo", f"file://{folder}/s", rank=rank, world_size=2)
    source = collection()
    shards = tokenize_source(source, tokenizer, "train", local_data=True)
    found = [[part.reads for part in source.parts], documents(shards)]
    (folder / f"local{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def test_without_a_common_disk_one_rank_of_each_node_tokenizes(tokenizer, tmp_path):
    context = multiprocessing.get_context("fork")
    arguments = [(rank, tokenizer, tmp_path) for rank in range(2)]
    ranks = [context.Process(target=local_rank_main, args=given) for given in arguments]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(300)
    found = [json.loads((tmp_path / f"local{r}.json").read_text()) for r in range(2)]
    assert found[0] == found[1] and found[0][0] == [1, 1, 1]


def rank_main(rank: int, tokenizer, folder: Path) -> None:
    """One of two ranks: notes who read which shard, and what came out."""
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", store, rank=rank, world_size=2)
    source = collection()
    shards = tokenize_source(source, tokenizer, "train")
    found = [[part.reads for part in source.parts], documents(shards)]
    read = []
    chats_of_rank = (read.append(chat) or chat for chat in chats(7))
    conversations = tokenize_conversations(chats_of_rank, tokenizer, name="chats")
    found += [len(read), documents(conversations), conversations.shards[0].mask.tolist()]
    with pytest.raises(DataError, match="my chats: found no conversation"):
        tokenize_conversations([], tokenizer, name="my chats")
    (folder / f"rank{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def test_rank_0_tokenizes_for_all(tokenizer, tmp_path):
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=rank_main, args=(r, tokenizer, tmp_path)) for r in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(300)
    found = [json.loads((tmp_path / f"rank{r}.json").read_text()) for r in range(2)]
    assert [reads for reads, *_ in found] == [[1, 1, 1], [0, 0, 0]]
    assert [num_chats for _, _, num_chats, *_ in found] == [7, 0]
    assert found[0][1] == found[1][1] and found[0][3:] == found[1][3:]


def test_plan_is_kept_beside_the_shard(tokenizer, base_dir):
    shard = tokenize_source(collection(), tokenizer, "train").shards[1]
    expected = plan_rows(shard.offsets, 8)
    assert (shard.plan(8) == expected).all()
    assert [p.name for p in base_dir.rglob("*plan*")] == ["train-00001.plan8.npy"]
    assert (shard.plan(8) == expected).all()


# ---------------------------------------------------------------- what can go wrong


def test_source_without_shards_is_named(tokenizer):
    with pytest.raises(DataError, match="owner/some name: found no val shard"):
        tokenize_source(collection(), tokenizer, "val")


@pytest.mark.parametrize(
    ("pattern", "complaint"), [("*0.uint16", "found .* bytes, expected"), ("*0.off*", "damaged")]
)
def test_damaged_file_is_named(tokenizer, base_dir, pattern, complaint):
    tokenize_source(collection(), tokenizer, "train")
    path = next(base_dir.rglob(pattern))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataError, match=complaint) as error:
        tokenize_source(collection(), tokenizer, "train")
    assert str(path) in str(error.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which Linux has")
def test_full_disk_keeps_finished_shards(tokenizer, base_dir):
    source = collection()
    source.parts[1].fails = True
    with pytest.raises(DataError):
        tokenize_source(source, tokenizer, "train")
    source.parts[1].fails = False
    folder = next(base_dir.rglob("*.uint16")).parent
    (folder / ".train-00001.partial").symlink_to("/dev/full")
    with pytest.raises(DataError, match="cannot be written .* NANOCHAT_BASE_DIR"):
        tokenize_source(source, tokenizer, "train")
    assert sorted(p.name for p in folder.glob("*.uint16")) == ["train-00000.uint16"]
    assert len(tokenize_source(source, tokenizer, "train").shards) == 3


# ---------------------------------------------------------------- conversations


def chats(n: int) -> list[dict]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"text {i}"},
                {"role": "assistant", "content": "the end " * (i % 3)},
            ]
        }
        for i in range(n)
    ]


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_conversations_are_rendered_without_bos(tokenizer, monkeypatch, chunk):
    monkeypatch.setattr(token_shards, "CHUNK_CONVERSATIONS", chunk)
    shards = tokenize_conversations(iter(chats(7)), tokenizer, name="chats")
    shard = shards.shards[0]
    for i, conversation in enumerate(chats(7)):
        ids, mask = render(conversation, tokenizer)
        document = slice(shard.offsets[i], shard.offsets[i + 1])
        assert shard.tokens[document].tolist() == ids[1:]
        assert shard.mask[document].tolist() == mask[1:]
    assert len(shard.offsets) == 7 + 1
    assert (shards.bos, shards.turn_end) == (ids[0], ids[-1])


def test_malformed_conversation_is_counted_from_one(tokenizer):
    broken = [*chats(2), {"messages": []}]
    with pytest.raises(DataError, match="my chats, conversation 3: found"):
        tokenize_conversations(broken, tokenizer, name="my chats")
    with pytest.raises(DataError, match="my chats: found no conversation"):
        tokenize_conversations([], tokenizer, name="my chats")
