"""What notebook 06 borrows from transformers."""

import torch
from torch import Tensor


def probabilities(logits: Tensor, seen: Tensor, options: dict[str, float]) -> Tensor:
    """The distribution (n,) that the reference's own classes make of logits (n,).

    seen: the tokens (S,) of the text so far; options: the settings in the order of their use.
    """
    from transformers.generation import logits_process

    classes = {
        "repetition_penalty": logits_process.RepetitionPenaltyLogitsProcessor,
        "temperature": logits_process.TemperatureLogitsWarper,
        "top_k": logits_process.TopKLogitsWarper,
        "top_p": logits_process.TopPLogitsWarper,
    }
    scores = logits[None].clone()
    for name, value in options.items():
        scores = classes[name](value)(seen[None], scores)
    return torch.softmax(scores, dim=-1)[0]
