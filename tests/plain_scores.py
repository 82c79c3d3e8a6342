"""The slow twin of core_loglikelihood.score: one row at a time, logits after every token."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from nanochat.evaluation.core_loglikelihood import Score
from nanochat.evaluation.core_prompts import Example


@torch.inference_mode()
def score_plainly(model, examples: Sequence[Example], tokens_at_once: int = 0) -> list[list[Score]]:
    """model: an InferenceModel, whose GPT is read instead, or a TransformersModel."""
    model = getattr(model, "master", model)
    scores = []
    for example in examples:
        scores.append([])
        for row in example.rows:
            ids = torch.from_numpy(row.ids.astype(np.int64)).to(model.device)
            logits = model(ids[None, :-1])[0, row.start - 1 :]  # (n, V)
            loss = F.cross_entropy(logits, ids[row.start :]).item()
            is_greedy = bool((logits.argmax(-1) == ids[row.start :]).all())
            scores[-1].append(Score(loss, is_greedy))
    return scores
