"""The official sizes without the official weights: names, shapes and counts on the meta device."""

import json

import pytest
import torch
import transformers

from qwen2vl import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from tests.helpers.reference import official_names, reference_config


@pytest.mark.parametrize("size", ["2b", "7b", "72b"])
def test_parameter_names_and_shapes_are_those_the_reference_saves(official, size):
    config = json.loads((official / f"config-{size}.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        ours = Qwen2VLForConditionalGeneration(Qwen2VLConfig.from_dict(config))
        theirs = transformers.Qwen2VLForConditionalGeneration(reference_config(config))
    saved = official_names(theirs.state_dict())
    if config["tie_word_embeddings"]:
        saved.pop("lm_head.weight")  # save_pretrained leaves out what is tied
    found = {name: p.shape for name, p in ours.named_parameters()}
    assert found == {name: p.shape for name, p in saved.items()}
    if size == "2b":
        assert sum(shape.numel() for shape in found.values()) == 2_208_985_600
