"""llama.cpp beside this project: the decoder's weights as GGUF files, read by its Python package.

`pip install -e ".[bench]"` brings both packages. llama-cpp-python is built from its source, which
takes a C++ compiler and some minutes. Its vision transformer is not part of the package, so only
prompts of text are compared.

Source of the names in the file: gguf-py and src/llama-arch.cpp in github.com/ggml-org/llama.cpp.
"""

import ctypes
import functools
import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import Result, progress
from benchmarks.settings import OURS
from qwen2vl import Qwen2VLForConditionalGeneration

if TYPE_CHECKING:  # the packages may be missing
    from gguf import GGUFWriter
    from llama_cpp import Llama

LLAMA_CPP = "llama.cpp"
NOT_INSTALLED = (
    'llama.cpp is not installed: pip install -e ".[bench]" builds it, with a C++ compiler'
)
CONTEXT = 1024  # tokens that its cache holds

# The formats that are compared, and the number of each in llama.cpp's enum llama_ftype.
FORMATS = {"BF16": 32, "Q8_0": 7, "Q4_0": 2, "Q4_K_M": 15}
# Each setting of ours, and the format that its users would choose there.
RIVALS = {
    OURS: "BF16",
    f"{OURS}, compiled": "BF16",
    f"{OURS}, int8": "Q8_0",
    f"{OURS}, int8, compiled": "Q8_0",
    f"{OURS}, int4": "Q4_0",
    f"{OURS}, int4, compiled": "Q4_0",
}

# From the checkpoint's names to those of GGUF: of a layer, and of the rest.
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OTHER_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def is_installed() -> bool:
    """Whether both packages can be found."""
    return all(importlib.util.find_spec(name) is not None for name in ("llama_cpp", "gguf"))


# ------------------------------------------------------------------------------------ the GGUF file


def gguf_name(path: str) -> str:
    """The name in a GGUF file of a parameter of the decoder or the head."""
    module, _, kind = path.rpartition(".")
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.*)", module)
    if layer:
        return f"blk.{layer[1]}.{LAYER_NAMES[layer[2]]}.{kind}"
    return f"{OTHER_NAMES[module]}.{kind}"


def write_gguf(model: Qwen2VLForConditionalGeneration, file: Path) -> None:
    """Write the decoder: matrices in bfloat16, vectors in float32, no tokenizer."""
    import gguf

    writer = gguf.GGUFWriter(file, "qwen2vl")
    write_config(model, writer)
    for path, p in model.named_parameters():
        if path.startswith("visual."):
            continue
        if p.dim() == 1:
            writer.add_tensor(gguf_name(path), p.detach().float().cpu().numpy())
        else:
            # NumPy has no bfloat16: the bytes are given, and what they are.
            values = p.detach().bfloat16().cpu().contiguous().view(torch.uint8).numpy()
            kind = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(gguf_name(path), values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_config(model: Qwen2VLForConditionalGeneration, writer: "GGUFWriter") -> None:
    """Sizes and constants, under the names that llama.cpp asks for."""
    config = model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_sections([*config.mrope_section, 0])  # of four axes it uses three
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(FORMATS["BF16"])


# -------------------------------------------------------------------------------------- the package


class LlamaModel:
    """One GGUF file, opened when it is first run, with as many threads as PyTorch has."""

    def __init__(self, file: Path) -> None:
        self.file = file

    @functools.cached_property
    def llama(self) -> "Llama":
        from llama_cpp import Llama

        threads = torch.get_num_threads()
        return Llama(
            str(self.file),
            n_ctx=CONTEXT,
            n_batch=CONTEXT,
            n_ubatch=CONTEXT,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
        )

    def forget(self) -> None:
        """Begin anew, with an empty cache."""
        self.llama.reset()

    def next_logits(self, ids: list[int]) -> Tensor:
        """Read these ids behind what was read before: logits (vocabulary,) of the next token."""
        import llama_cpp

        self.llama.eval(ids)
        pointer = llama_cpp.llama_get_logits_ith(self.llama.ctx, -1)
        values = np.ctypeslib.as_array(pointer, shape=(self.llama.n_vocab(),))
        return torch.from_numpy(values.copy())  # the next call overwrites them


def write_all_formats(
    model: Qwen2VLForConditionalGeneration, folder: Path
) -> dict[str, LlamaModel]:
    """The model's decoder in each of the formats, by their names. Takes a minute or two at 2B."""
    models = {}
    for name, number in FORMATS.items():
        file = folder / f"{name}.gguf"
        progress(f"  writing {file}")
        if name == "BF16":
            write_gguf(model, file)
        else:
            quantize(models["BF16"].file, file, number)
        models[name] = LlamaModel(file)
    return models


@functools.cache
def no_log() -> object:
    """What llama.cpp calls with each line of its log; kept, since it may call it at any time."""
    import llama_cpp

    return llama_cpp.llama_log_callback(lambda level, text, data: None)


def quantize(source: Path, target: Path, number: int) -> None:
    """Let llama.cpp write a GGUF file in another format; RuntimeError if it can't."""
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = number
    parameters.nthread = torch.get_num_threads()
    llama_cpp.llama_log_set(no_log(), ctypes.c_void_p(0))
    code = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(parameters)
    )
    if code != 0:
        raise RuntimeError(f"llama.cpp could not write {target}: error {code}")


def against_llama_cpp(results: list[Result]) -> list[str]:
    """A line for each stage with llama.cpp: ours against the format that its users would choose."""
    lines = []
    for stage in dict.fromkeys(result.stage for result in results):
        medians = {result.contestant: result.median for result in results if result.stage == stage}
        ratios = []
        for ours, format in RIVALS.items():
            theirs = f"{LLAMA_CPP}, {format}"
            if ours in medians and theirs in medians:
                ratios.append(f"{ours} {medians[theirs] / medians[ours]:.2f} × {theirs}")
        if ratios:
            lines.append(f"{stage}, speeds: {'; '.join(ratios)}.")
    return lines
