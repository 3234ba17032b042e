"""What one side, ours or the reference, makes of a question about an image."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from comparison import mean_relative
from measure import peak_memory, seconds
from PIL import Image
from stages import EMBEDDINGS, LOGITS_KEPT, SPLICE
from torch import Tensor


@dataclass(frozen=True)
class Question:
    """An image (RGB) and a text, and how many tokens the answer may have."""

    image: Image.Image
    text: str
    max_new_tokens: int = 12

    def conversation(self) -> list[dict]:
        """One message of the user, as both sides take it."""
        content = [{"type": "image", "image": self.image}, {"type": "text", "text": self.text}]
        return [{"role": "user", "content": content}]


@dataclass
class Side:
    """What one side made of a question. A stage that it did not reach is missing."""

    prompt: str = ""
    answer: str = ""
    inputs: dict[str, Tensor] = field(default_factory=dict)  # what goes into the model, by name
    # What each stage put out, (rows, D): from start to end; by itself, when it gets what the
    # *reference* gave to it; and that in float32, where the model is in another dtype.
    stages: dict[str, Tensor] = field(default_factory=dict)
    alone: dict[str, Tensor] = field(default_factory=dict)
    alone_float32: dict[str, Tensor] = field(default_factory=dict)
    new_ids: list[int] = field(default_factory=list)
    # For each new token, with the *reference's* tokens before it: (vocabulary,) in float32.
    new_logits: list[Tensor] = field(default_factory=list)
    costs: dict[str, float] = field(default_factory=dict)
    stopped: str = ""  # the error that ended it, if there was one

    def note_inputs(self, inputs: dict[str, Tensor], image_token_id: int) -> None:
        """Keep what a processor made, and which tokens are placeholders."""
        for name in ("input_ids", "attention_mask", "pixel_values", "image_grid_thw"):
            self.inputs[name] = inputs[name].cpu()
        is_placeholder = self.inputs["input_ids"][0] == image_token_id
        self.inputs["placeholders"] = is_placeholder.nonzero()[:, 0]

    def logits_kept(self) -> int:
        """Of how many last positions of the prompt logits are computed."""
        return min(LOGITS_KEPT, self.inputs["input_ids"].shape[1])

    def stages_in_order(self) -> list[str]:
        """The names of its stages in the order of the data, the splice before the decoder."""
        names = [name for name in self.stages if name != SPLICE]
        # Token embeddings are looked up before the image is encoded.
        names.remove(EMBEDDINGS)
        at = names.index("merger") + 1
        return [*names[:at], EMBEDDINGS, SPLICE, *names[at:]]

    def measure_prefill(self, run: Callable[[], object]) -> None:
        """Run a pass over the prompt for its time, and once more for the memory that it takes."""
        start = seconds()
        run()
        self.costs["prefill, seconds"] = seconds() - start
        self.costs["prefill, MB beyond the weights"] = peak_memory(run)

    def note_weights(self, model: torch.nn.Module) -> None:
        self.costs["weights, MB"] = sum(p.nbytes for p in model.parameters()) / 1e6

    def note_generation(self, elapsed: float) -> None:
        """Keep the time of an answer, its prefill included."""
        self.costs["answer, seconds a token"] = elapsed / max(1, len(self.new_ids))


@dataclass
class Rounding:
    """How far the reference in bfloat16 is from the reference in float32: nothing in float32.

    By stage, as a relative root of mean squares: from start to end, and each stage by itself.
    """

    stages: dict[str, float] = field(default_factory=dict)
    alone: dict[str, float] = field(default_factory=dict)
    logit: float = 0.0  # of the logits: the largest difference
    position: float = 0.0  # of the logits of one position: the largest relative one

    @classmethod
    def of(cls, narrow: Side, wide: dict[str, Tensor]) -> "Rounding":
        """From a side in bfloat16, with its stages by themselves in float32, and a run in
        float32 from start to end.
        """
        rounding = cls()
        for name, result in narrow.stages.items():
            rounding.stages[name] = mean_relative(result, wide[name])
            rounding.alone[name] = mean_relative(result, narrow.alone_float32[name])
        difference = narrow.stages["logits"].double() - wide["logits"].double()
        by_position = difference.norm(dim=-1) / wide["logits"].double().norm(dim=-1)
        rounding.logit = float(difference.abs().max())
        rounding.position = float(by_position.max())
        return rounding


class Returned:
    """A function that keeps what it has returned."""

    def __init__(self, function: Callable) -> None:
        self.function = function
        self.results: list = []

    def __call__(self, *args: object, **options: object) -> object:
        result = self.function(*args, **options)
        self.results.append(result)
        return result
