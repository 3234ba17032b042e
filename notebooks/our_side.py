"""Our side: the processor and the model of this repository."""

from typing import Any
from unittest import mock

import torch
from measure import seconds
from side import Question, Returned, Side
from stages import in_float32, recorded, stage_modules
from torch import Tensor

from processor import Qwen2VLProcessor
from qwen2vl import Qwen2VLForConditionalGeneration


class OurSide:
    """Our model and processor, ready to be asked.

    `their_side`, in the methods, is what the reference made of the same question.
    """

    def __init__(self, model: Qwen2VLForConditionalGeneration, processor: Qwen2VLProcessor) -> None:
        self.model = model
        self.processor = processor
        self.modules = stage_modules(model.visual, model.model, model.lm_head)

    @torch.no_grad()
    def ask(self, question: Question, their_side: Side, measured: bool = True) -> Side:
        """All that our code makes of a question, each pass up to its first error.

        measured: whether time and memory are measured as well.
        """
        side = Side()
        side.note_weights(self.model)
        steps = [self.prepare, self.run_from_start, self.run_alone, self.run_alone_in_float32]
        if measured:
            steps.append(self.measure)
        steps.append(self.generate)
        for step in steps:
            try:
                step(question, side, their_side)
            except (ValueError, RuntimeError, IndexError, KeyError) as error:
                # Damaged code may raise any of them; what lacks an earlier result, KeyError. The
                # table says at which stage it was.
                first_line = f"{type(error).__name__}: {error}".split("\n")[0]
                side.stopped = side.stopped or first_line
        return side

    def prepare(self, question: Question, side: Side, their_side: Side) -> None:
        """From image and text to what the model reads, with their positions."""
        conversation = question.conversation()
        side.prompt = self.processor.apply_chat_template(conversation, add_generation_prompt=True)
        image_processor = self.processor.image_processor
        resize = Returned(image_processor.resize_images)
        with mock.patch.object(image_processor, "resize_images", resize):
            inputs = self.processor.apply_chat_template(
                conversation, add_generation_prompt=True, tokenize=True, return_dict=True
            )
        side.inputs["pixels"] = resize.results[0][0]  # of the first image: (3, height, width)
        side.note_inputs(inputs, self.model.config.image_token_id)
        positions, delta = self.model.get_rope_index(
            inputs.input_ids, inputs.image_grid_thw, None, inputs.attention_mask
        )
        side.inputs["positions"] = positions[:, 0]
        side.inputs["delta"] = delta

    def arguments(self, side: Side) -> dict[str, Tensor]:
        """The tensors of a pass over the prompt."""
        names = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")
        return {name: side.inputs[name].to(self.model.device) for name in names}

    def run_from_start(self, question: Question, side: Side, their_side: Side) -> None:
        """The stages from start to end."""
        with recorded(self.modules) as side.stages:
            self.model(**self.arguments(side), logits_to_keep=side.logits_kept())

    def run_alone(self, question: Question, side: Side, their_side: Side) -> None:
        """Each stage by itself, on what the reference gave to it."""
        with recorded(self.modules, their_side.stages) as side.alone:
            self.model(**self.their_arguments(their_side))

    def run_alone_in_float32(self, question: Question, side: Side, their_side: Side) -> None:
        """The same with all weights widened, where they are in another dtype."""
        if self.model.dtype is torch.float32:
            return
        arguments = self.their_arguments(their_side)
        # The decoder compares the dtype of what it gets with that of its norm.
        with (
            in_float32(self.model, widened_first=[self.model.model.norm]),
            recorded(self.modules, their_side.stages) as side.alone_float32,
        ):
            self.model(**arguments)

    def their_arguments(self, their_side: Side) -> dict[str, Any]:
        """What the reference's processor gave to its model, with its positions, for ours."""
        arguments: dict[str, Any] = dict(self.arguments(their_side))
        positions = their_side.inputs["positions"][:, None]  # (3, 1, T)
        arguments["position_ids"] = positions.to(self.model.device)
        # Rounded as the reference's model rounds them, also where weights are widened.
        arguments["pixel_values"] = arguments["pixel_values"].to(self.model.dtype)
        arguments["logits_to_keep"] = their_side.logits_kept()
        return arguments

    def measure(self, question: Question, side: Side, their_side: Side) -> None:
        """Time and memory of a pass over the prompt."""
        arguments = self.arguments(side)
        side.measure_prefill(lambda: self.model(**arguments, logits_to_keep=1))

    def generate(self, question: Question, side: Side, their_side: Side) -> None:
        """The answer, with the same settings; and the logits behind each of *their* tokens."""
        arguments = self.arguments(side)
        length = side.inputs["input_ids"].shape[1]
        start = seconds()
        ids = self.model.generate(
            **arguments,
            max_new_tokens=question.max_new_tokens,
            do_sample=False,
            repetition_penalty=1.0,
        )
        side.new_ids = ids[0, length:].tolist()
        side.note_generation(seconds() - start)
        side.answer = self.processor.decode(side.new_ids, skip_special_tokens=True)
        self.follow(side, their_side.new_ids)

    def follow(self, side: Side, tokens: list[int]) -> None:
        """Fill in new_logits: what we would say after each of the reference's tokens."""
        arguments = self.arguments(side)
        media = (arguments["pixel_values"], arguments["image_grid_thw"], None, None)
        logits, step = self.model.prefill(
            arguments["input_ids"], arguments["attention_mask"], media, len(tokens), False
        )
        side.new_logits = [logits[0].float().cpu()]
        for token in tokens[:-1]:
            logits = step(torch.tensor([token], device=self.model.device))
            side.new_logits.append(logits[0].float().cpu())
