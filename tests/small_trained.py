"""A checkpoint of a model trained for a few seconds, so that bits per byte mean something."""

import torch
import torch.nn.functional as F
from tiny_checkpoint import save

from nanochat.conversation import render
from nanochat.data.offline_corpus import python_topics
from nanochat.gpt import GPT, GPTConfig
from nanochat.publishing.parity_texts import conversation
from nanochat.publishing.tokenizer_search import default_text
from nanochat.tokenizer import Tokenizer

CHARACTERS = 60_000
QUESTIONS = (
    ("What is the capital of France?", "Paris."),
    ("Hello! How are you?", "I am well, thank you. How can I help you?"),
    ("What is 2 + 3?", "5"),
)


def small_text() -> str:
    """Prose of Python's own manual, beginning with what the doctor scores by default."""
    return default_text() + " ".join(text for _, text in python_topics())[:CHARACTERS]


def small_tokenizer(text: str, **options) -> Tokenizer:
    return Tokenizer.train([text], vocab_size=512, **options)


def train_small(tokenizer: Tokenizer, text: str, steps: int = 140) -> GPT:
    """One layer of width 64, context 64, trained on rows that begin with <|bos|> and on chats."""
    shape = {"n_layer": 1, "n_embd": 64, "n_head": 2, "n_kv_head": 2, "head_dim": 32}
    model = GPT(GPTConfig(**shape, vocab_size=tokenizer.vocab_size, sequence_len=64))
    ids = tokenizer.encode_ordinary(text)
    rows = [[tokenizer.bos, *ids[i : i + 64]] for i in range(0, len(ids) - 64, 64)]
    chats = [
        render(conversation([("user", q), ("assistant", a)] * 2), tokenizer)[0]
        for q, a in QUESTIONS
    ]
    rows += [(chat * 9)[:65] for chat in chats] * (len(rows) // 20)
    data = torch.tensor(rows)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / steps)
        batch = data[torch.randint(len(data), (8,), generator=generator)]
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def save_small(stage: str = "sft", tag: str = "small"):
    """(folder of the checkpoint, its tokenizer, the text it was trained on)."""
    text = small_text()
    tokenizer = small_tokenizer(text)
    model = train_small(tokenizer, text)
    return save(7, stage, tag, model=model, tokenizer=tokenizer), tokenizer, text
