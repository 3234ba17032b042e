"""The reference's side: the processor, template, tokenizer and model of `transformers`."""

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers
from measure import seconds
from side import Question, Returned, Rounding, Side
from stages import in_float32, recorded, stage_modules
from transformers.models.qwen2_vl import image_processing_qwen2_vl as image_processing

from load import find_checkpoint, read_json, read_media_config

# For a checkpoint without a template, as the embedded one: it writes what the official one does,
# of text and images.
STAND_IN_TEMPLATE = """\
{%- for turn in messages -%}
    {%- if loop.first and turn.role != "system" -%}
        {{- "<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n" -}}
    {%- endif -%}
    {{- "<|im_start|>" ~ turn.role ~ "\\n" -}}
    {%- for item in turn.content -%}
        {%- if item.type == "image" -%}
            {{- "<|vision_start|><|image_pad|><|vision_end|>" -}}
        {%- else -%}
            {{- item.text -}}
        {%- endif -%}
    {%- endfor -%}
    {{- "<|im_end|>\\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%} {{- "<|im_start|>assistant\\n" -}} {%- endif -%}
"""


class ProcessorWithoutVideo(transformers.Qwen2VLProcessor):
    """The reference's processor for images and text: its video part would need torchvision."""

    attributes = ["image_processor", "tokenizer"]  # noqa: RUF012  (as the class above has it)

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str) -> None:
        self.image_token = "<|image_pad|>"
        self.video_token = "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        transformers.ProcessorMixin.__init__(
            self, image_processor, tokenizer, chat_template=chat_template
        )


def load_processor(folder: Path, max_pixels: int | None = None) -> ProcessorWithoutVideo:
    """The reference's processor with the settings of a folder; it resizes with Pillow."""
    # It warns of a mistake of other models' tokenizers, whatever the model is.
    transformers.logging.set_verbosity_error()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    # Older folders keep the template in a file of its own.
    of_processor = read_json(folder, "chat_template.json", optional=True).get("chat_template")
    template = tokenizer.chat_template or of_processor or STAND_IN_TEMPLATE
    settings, _ = read_media_config(folder)
    names = ("min_pixels", "max_pixels", "patch_size", "temporal_patch_size", "merge_size")
    names += ("image_mean", "image_std")
    stated = {name: settings[name] for name in names if name in settings}
    if max_pixels is not None:
        stated["max_pixels"] = max_pixels
    image_processor = image_processing.Qwen2VLImageProcessor(**stated)
    return ProcessorWithoutVideo(image_processor, tokenizer, template)


def load_model(name: str, dtype: torch.dtype, device: str) -> Any:
    """The model of a checkpoint in transformers, with attention in plain operations."""
    model = transformers.Qwen2VLForConditionalGeneration.from_pretrained(
        find_checkpoint(name), dtype=dtype, attn_implementation="eager"
    )
    return model.eval().to(device)


class TheirSide:
    """The reference, ready to be asked."""

    def __init__(self, model: Any, processor: ProcessorWithoutVideo) -> None:
        self.model = model
        self.processor = processor
        parts = model.model
        self.modules = stage_modules(parts.visual, parts.language_model, model.lm_head)

    @torch.no_grad()
    def ask(self, question: Question) -> Side:
        """All that the reference makes of a question."""
        side = Side()
        side.note_weights(self.model)
        self.prepare(question, side)
        arguments = self.arguments(side)
        with recorded(self.modules) as side.stages:
            self.model(**arguments)
        side.measure_prefill(lambda: self.model(**arguments))
        self.generate(question, side)
        return side

    def prepare(self, question: Question, side: Side) -> None:
        """From image and text to what the model reads, with their positions."""
        conversation = question.conversation()
        side.prompt = self.processor.apply_chat_template(
            conversation, add_generation_prompt=True, tokenize=False
        )
        resize = Returned(image_processing.resize)
        with mock.patch.object(image_processing, "resize", resize):
            inputs = self.processor.apply_chat_template(
                conversation,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
        pixels = torch.from_numpy(np.array(resize.results[0]))  # (height, width, 3)
        side.inputs["pixels"] = pixels.permute(2, 0, 1)
        side.note_inputs(inputs, self.model.config.image_token_id)
        positions, delta = self.model.model.get_rope_index(
            inputs["input_ids"], inputs["image_grid_thw"], None, inputs["attention_mask"]
        )
        side.inputs["positions"] = positions[:, 0]
        side.inputs["delta"] = delta

    def arguments(self, side: Side) -> dict[str, Any]:
        """The arguments of a pass over the prompt."""
        arguments: dict[str, Any] = {"use_cache": False}
        for name in ("input_ids", "attention_mask", "pixel_values", "image_grid_thw"):
            arguments[name] = side.inputs[name].to(self.model.device)
        return arguments

    def generate(self, question: Question, side: Side) -> None:
        """The most probable token at each step: no sampling, no penalty, whatever the file says."""
        arguments = self.arguments(side)
        del arguments["use_cache"]
        start = seconds()
        output = self.model.generate(
            **arguments,
            max_new_tokens=question.max_new_tokens,
            do_sample=False,
            repetition_penalty=1.0,
            temperature=None,
            top_k=None,
            top_p=None,
            output_logits=True,
            return_dict_in_generate=True,
        )
        length = arguments["input_ids"].shape[1]
        side.new_ids = output.sequences[0, length:].tolist()
        side.note_generation(seconds() - start)
        side.new_logits = [logits[0].float().cpu() for logits in output.logits]
        side.answer = self.processor.tokenizer.decode(side.new_ids, skip_special_tokens=True)

    @torch.no_grad()
    def rounding(self, side: Side) -> Rounding:
        """What bfloat16 costs the reference at each stage; fills in side.alone_float32."""
        if self.model.dtype is torch.float32:
            return Rounding()
        arguments = self.arguments(side)
        with in_float32(self.model):
            with recorded(self.modules) as wide:
                self.model(**arguments)
            with recorded(self.modules, side.stages) as side.alone_float32:
                self.model(**arguments)
        return Rounding.of(side, wide)
