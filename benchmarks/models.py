"""The models that compete, on the same weights: ours, also in int8 and int4, and the reference."""

import re
import tempfile
import types
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from benchmarks.llama_cpp import LlamaModel, write_all_formats
from benchmarks.settings import REFERENCE, Settings
from benchmarks.shapes import SHAPES
from qwen2vl import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from qwen2vl_extras.placement import Placement
from qwen2vl_extras.quantization import Quantization

if TYPE_CHECKING:  # the package may be missing
    from transformers import Qwen2VLForConditionalGeneration as ReferenceModel

NO_REFERENCE = (
    "transformers is not installed: only this project is measured; "
    'pip install -e ".[dev]" brings the comparison'
)


def import_transformers() -> types.ModuleType | None:
    """The package, silent below errors; None without it."""
    try:
        import transformers
    except ImportError:
        return None
    transformers.logging.set_verbosity_error()
    return transformers


def config_of(model: str) -> Qwen2VLConfig:
    """The config of an official shape, or of what `Qwen2VLConfig.from_pretrained` takes."""
    if model in SHAPES:
        return Qwen2VLConfig.from_dict(SHAPES[model])
    if model.startswith("shape:"):
        raise ValueError(f"there is no {model}; the shapes are {', '.join(SHAPES)}")
    return Qwen2VLConfig.from_pretrained(model)


class Models:
    """Each model is built when it is first asked for; all share the storage of one set of weights.

    With `empty`, for measuring memory, the weights are zeros, which take no memory before they are
    written.
    """

    def __init__(self, settings: Settings, empty: bool = False) -> None:
        self.settings = settings
        self.device = settings.device
        self.dtype = settings.dtype
        self.empty = empty
        self.config = config_of(settings.model)
        self.transformers = import_transformers() if settings.reference else None
        self.built_ours: Qwen2VLForConditionalGeneration | None = None
        self.built_int8: Qwen2VLForConditionalGeneration | None = None
        self.built_int4: Qwen2VLForConditionalGeneration | None = None
        self.built_reference: ReferenceModel | None = None
        self.built_llama_cpp: dict[str, LlamaModel] | None = None

    @property
    def has_reference(self) -> bool:
        return self.transformers is not None

    def of_contestant(self, name: str) -> nn.Module:
        """The model that the contestant of this name runs."""
        if name.startswith(REFERENCE):
            return self.reference()
        if "int8" in name:
            return self.int8()
        if "int4" in name:
            return self.int4()
        return self.ours()

    def ours(self) -> Qwen2VLForConditionalGeneration:
        if self.built_ours is None:
            self.built_ours = self.build_ours()
        return self.built_ours

    def int8(self) -> Qwen2VLForConditionalGeneration:
        if self.built_int8 is None:
            self.built_int8 = self.build_int8()
        return self.built_int8

    def int4(self) -> Qwen2VLForConditionalGeneration:
        if self.built_int4 is None:
            self.built_int4 = self.build_int4()
        return self.built_int4

    def reference(self) -> "ReferenceModel":
        if self.built_reference is None:
            self.built_reference = self.build_reference()
        return self.built_reference

    def llama_cpp(self) -> dict[str, LlamaModel]:
        """The decoder in the formats of llama.cpp; the files are removed when this object is."""
        if self.built_llama_cpp is None:
            self.gguf_folder = tempfile.TemporaryDirectory(prefix="gguf-")
            self.built_llama_cpp = write_all_formats(self.ours(), Path(self.gguf_folder.name))
        return self.built_llama_cpp

    def build_ours(self) -> Qwen2VLForConditionalGeneration:
        """Random weights for an official shape, the checkpoint's own for any other name."""
        settings = self.settings
        if settings.model not in SHAPES:
            return Qwen2VLForConditionalGeneration.from_pretrained(
                settings.model, settings.dtype, settings.device, settings.attention
            )
        with torch.device("meta"):
            model = Qwen2VLForConditionalGeneration(self.config, settings.attention)
        noise = torch.randn(2**24, generator=torch.Generator().manual_seed(0))
        noise = noise.to(self.device, self.dtype)
        noise.mul_(0.02)  # the spread of the reference's own initialisation
        for path, p in list(model.named_parameters()):
            model.set_parameter(path, self.random_weight(path, p.shape, noise))
        model.tie_weights()
        Placement(self.device).finish(model)  # as from_pretrained does
        return model.eval()

    def random_weight(self, path: str, shape: torch.Size, noise: Tensor) -> Tensor:
        """Ones for the scales of norms, zeros for biases, the noise over and over for a matrix."""
        if self.empty:
            return torch.zeros(shape, device=self.device, dtype=self.dtype)
        if len(shape) == 1:
            is_scale = path.endswith("weight")
            return torch.full(shape, float(is_scale), device=self.device, dtype=self.dtype)
        values = torch.empty(shape, device=self.device, dtype=self.dtype)
        for part in values.view(-1).split(len(noise)):
            part.copy_(noise[: len(part)])
        return values

    def build_int8(self) -> Qwen2VLForConditionalGeneration:
        """Our model with matrices in int8."""
        return self.build_rounded(int8=True)

    def build_int4(self) -> Qwen2VLForConditionalGeneration:
        """Our model with the decoder's matrices in four bits."""
        return self.build_rounded(int4=True)

    def build_rounded(
        self, int8: bool = False, int4: bool = False
    ) -> Qwen2VLForConditionalGeneration:
        """Our model with quantized matrices; what is not quantized is shared with ours."""
        ours = self.ours()
        shapes = {path: tuple(p.shape) for path, p in ours.named_parameters()}
        quantization = Quantization(shapes, int8, int4)
        with torch.device("meta"):
            model = Qwen2VLForConditionalGeneration(self.config, self.settings.attention)
        for path, p in ours.named_parameters():
            model.set_parameter(path, p.detach())
            quantization.round_layer(model, path)
        model.tie_weights()
        Placement(self.device).finish(model)
        return model.eval()

    def build_reference(self) -> "ReferenceModel":
        """The model of `transformers`, whose parameters are those of ours."""
        transformers = self.transformers
        assert transformers is not None
        ours = self.ours()
        config = transformers.Qwen2VLConfig(**self.config.to_dict())
        torch.set_default_dtype(self.dtype)
        try:
            with transformers.modeling_utils.no_init_weights(), self.device:
                model = transformers.Qwen2VLForConditionalGeneration(config)
        finally:
            torch.set_default_dtype(torch.float32)

        # In memory the reference has other names than in the official files, which are ours.
        state = {}
        for name, p in ours.named_parameters():
            name = re.sub(r"^model\.", "model.language_model.", name)
            name = re.sub(r"^visual\.", "model.visual.", name)
            state[name] = p.detach()
        model.load_state_dict(state, strict=not self.config.tie_word_embeddings, assign=True)
        model.tie_weights()
        model.set_attn_implementation(self.reference_attention())
        return model.eval()

    def reference_attention(self) -> str:
        """The attention that was asked for; chunked is ours alone."""
        attention = self.settings.attention
        return "sdpa" if attention == "chunked" else attention
