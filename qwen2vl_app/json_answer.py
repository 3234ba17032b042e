"""What `--json` prints: one answer as a line of JSON, with its boxes, tokens and times."""

import argparse
import time

import torch

from processor import BatchFeature, Message, Qwen2VLProcessor
from qwen2vl import Qwen2VLForConditionalGeneration
from qwen2vl_app.progress import note_long_reading, reading_bars
from qwen2vl_app.records import answer_record
from qwen2vl_app.trace import trace_stages


def json_answer(
    model: Qwen2VLForConditionalGeneration,
    processor: Qwen2VLProcessor,
    messages: list[Message],
    args: argparse.Namespace,
    settings: dict,
    load_seconds: float,
) -> dict[str, object]:
    """The record of an answer to a conversation; settings: of `model.stream`.

    `seconds` says what each stage took: loading, opening the images and making tokens (inputs),
    the vision transformer, the decoder's prefill, all decode steps, and everything (total).
    """
    start = time.perf_counter()
    inputs = processor.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=True, video_fps=args.fps
    )
    assert isinstance(inputs, BatchFeature)  # no string, since it is tokenized
    tensors: dict = inputs.to(model.device)
    input_seconds = time.perf_counter() - start
    note_long_reading(model, inputs)

    tokens = model.stream(**tensors, **settings)
    traced = trace_stages(model, compiled=args.compile, table=args.trace)
    with reading_bars(model, inputs), traced as trace:
        ids = torch.stack(list(trace.steps(tokens)), dim=1)[0].tolist()  # of the only row

    answer = processor.text_stream().read_all(ids)
    record = answer_record(answer, inputs.input_ids.shape[1], len(ids))
    seconds = {"load": load_seconds, "inputs": input_seconds, **trace.phase_seconds()}
    seconds["total"] = load_seconds + time.perf_counter() - start
    record["seconds"] = {stage: round(value, 4) for stage, value in seconds.items()}
    return record
