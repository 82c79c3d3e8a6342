"""GPT-2's published CORE figures, to see ours beside them.

Source: karpathy/nanochat, dev/estimate_gpt3_core.ipynb (January 2026), where OpenAI's four
checkpoints were evaluated: the CORE metric, and of six of its tasks the accuracy, to a tenth of a
percent. The figures of the other sixteen tasks are not given there, so they are not here.
"""

SOURCE = "karpathy/nanochat, dev/estimate_gpt3_core.ipynb"
TASKS = {  # with the accuracy of guessing
    "hellaswag_zeroshot": 0.25,
    "lambada_openai": 0.0,
    "hellaswag": 0.25,
    "piqa": 0.5,
    "arc_easy": 0.25,
    "arc_challenge": 0.25,
}
CORE = {"GPT-2 124M": 0.1139, "GPT-2 355M": 0.1849, "GPT-2 774M": 0.2146, "GPT-2 1.5B": 0.2565}
ACCURACY = {  # in the order of TASKS
    "GPT-2 124M": (0.309, 0.323, 0.308, 0.623, 0.412, 0.222),
    "GPT-2 355M": (0.390, 0.426, 0.395, 0.670, 0.480, 0.262),
    "GPT-2 774M": (0.440, 0.488, 0.444, 0.698, 0.535, 0.264),
    "GPT-2 1.5B": (0.502, 0.523, 0.512, 0.725, 0.595, 0.299),
}


def centred(model: str) -> dict[str, float]:
    """(accuracy - baseline) / (1 - baseline) of the six tasks.

    Example: centred("GPT-2 124M")["piqa"] is (0.623 - 0.5) / 0.5 = 0.246.
    """
    pairs = zip(TASKS.items(), ACCURACY[model], strict=True)
    return {name: (accuracy - baseline) / (1 - baseline) for (name, baseline), accuracy in pairs}
