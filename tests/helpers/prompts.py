"""A data set of prompts, in a file that a worker process imports fast."""

import torch

from processor import Message, Qwen2VLProcessor

QUESTION: list[Message] = [
    {"role": "user", "content": [{"type": "text", "text": "Say <|im_end|> to <memory>."}]}
]


class Prompts(torch.utils.data.Dataset):
    """Encodes the same question three times, by its own copy of a processor."""

    def __init__(self, processor: Qwen2VLProcessor) -> None:
        self.processor = processor

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.processor.apply_chat_template(QUESTION, tokenize=True)[0]
