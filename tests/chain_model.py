"""A real model that says what a test wants: the next token depends on the last one alone.

The blocks of a new GPT add nothing, so logits = head(norm(embedding)). With one-hot embeddings,
row t of the head holds the tokens that t follows.
"""

import torch

from nanochat.gpt import GPT, GPTConfig
from nanochat.tokenizer import Tokenizer

V = 320


def chain_tokenizer() -> Tokenizer:
    """Letters, digits and signs are a token each, whatever stands beside them."""
    return Tokenizer.train(["~^~^"], vocab_size=V)


def chain_model(tokenizer: Tokenizer, *texts: str, context: int = 256) -> GPT:
    """A model that goes from each token to the next one of `texts`, markup honoured.

    A token that several texts go on from differently leads to any of them, equally likely. Greedy,
    its logits are 12.5 against 0.
    """
    shape = {"n_layer": 1, "n_embd": V, "n_head": 5, "n_kv_head": 5, "head_dim": 64}
    model = GPT(GPTConfig(vocab_size=V, sequence_len=context, **shape))
    model.compute_dtype = torch.float32
    embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
    with torch.no_grad():
        embedding.copy_(torch.eye(V))
        head.zero_()
        for text in texts:
            ids = tokenizer.encode(text)
            for now, after in zip(ids, ids[1:], strict=False):
                head[after, now] = 1.0
    return model.eval()
