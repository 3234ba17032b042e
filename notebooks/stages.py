"""The stages of a model, ours or the reference's: what comes out of each while it runs.

Both models are PyTorch modules with the same parts under other names. A forward hook on each part
records what comes out. Two more things can be done to a run, and together they find the stage in
which a mistake is:

  * replacements: each stage gets what the *reference* gave to it, not what the stages before it
    made, so a mistake is seen in its own stage and nowhere else;
  * `in_float32`: the weights of a bfloat16 model are widened to float32, one layer at a time and
    only while it runs, so memory for one more layer is enough.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch.nn as nn
from comparison import as_rows
from torch import Tensor
from torch.utils.hooks import RemovableHandle

EMBEDDINGS = "token embeddings"
LOGITS = "logits"
# Of a prompt only so many last positions are kept: with 150,000 tokens logits are large.
LOGITS_KEPT = 16
SPLICE = "splice"  # what enters the first layer of the decoder: no module's result


def stage_modules(visual: nn.Module, decoder: nn.Module, head: nn.Module) -> dict[str, nn.Module]:
    """The parts of a model, ours or the reference's, in order: name to module."""
    modules: dict[str, nn.Module] = {"patch embedding": visual.patch_embed}
    for i, block in enumerate(visual.blocks):
        modules[f"vision block {i}: attention"] = block.attn
        modules[f"vision block {i}: MLP"] = block.mlp
        modules[f"vision block {i}"] = block
    modules["merger"] = visual.merger
    modules[EMBEDDINGS] = decoder.embed_tokens
    for i, layer in enumerate(decoder.layers):
        modules[f"decoder layer {i}: attention"] = layer.self_attn
        modules[f"decoder layer {i}: MLP"] = layer.mlp
        modules[f"decoder layer {i}"] = layer
    modules["final norm"] = decoder.norm
    modules[LOGITS] = head
    return modules


class Recorder:
    """Hooks on the stages of a model, from `start` to `stop`; results: name to (rows, D)."""

    def __init__(
        self, modules: Mapping[str, nn.Module], replacements: Mapping[str, Tensor] | None = None
    ) -> None:
        self.modules = modules
        self.names = {module: name for name, module in modules.items()}
        self.replacements = replacements or {}
        self.results: dict[str, Tensor] = {}
        self.hooks: list[RemovableHandle] = []

    def start(self) -> None:
        for module in self.modules.values():
            self.hooks.append(module.register_forward_hook(self.after))
        first_layer = self.modules["decoder layer 0"]
        self.hooks.append(first_layer.register_forward_pre_hook(self.before_decoder))

    def stop(self) -> None:
        for hook in self.hooks:
            hook.remove()

    def after(
        self, module: nn.Module, args: tuple, output: Tensor | tuple
    ) -> Tensor | tuple | None:
        """Hook: note what a stage gave, and hand on the replacement, where there is one."""
        result = output[0] if isinstance(output, tuple) else output
        result = self.note(self.names[module], result)
        # What a layer returns beside its result is handed on as it is.
        return (result, *output[1:]) if isinstance(output, tuple) else result

    def before_decoder(self, module: nn.Module, args: tuple) -> tuple:
        """Hook: note what enters the decoder."""
        return (self.note(SPLICE, args[0]), *args[1:])

    def note(self, name: str, result: Tensor) -> Tensor:
        rows = as_rows(result)
        self.results[name] = rows[-LOGITS_KEPT:] if name == LOGITS else rows
        # Attention and MLP are not replaced: their layer, or block, is a stage as a whole.
        replacement = self.replacements.get(name)
        is_part = ": " in name
        if replacement is None or is_part or replacement.numel() != result.numel():
            return result
        return replacement.to(result).view_as(result)


@contextlib.contextmanager
def recorded(
    modules: Mapping[str, nn.Module], replacements: Mapping[str, Tensor] | None = None
) -> Iterator[dict[str, Tensor]]:
    """What each stage puts out in the `with` block: name to (rows, D), on the CPU.

    replacements: by stage, what is handed on to the next stage in place of that.
    """
    recorder = Recorder(modules, replacements)
    recorder.start()
    try:
        yield recorder.results
    finally:
        recorder.stop()


class Widening:
    """Hooks that let each layer of a model run in float32, whatever its weights are stored in."""

    def __init__(self) -> None:
        self.stored: dict[nn.Parameter, Tensor] = {}
        self.hooks: list[RemovableHandle] = []

    def start(self, model: nn.Module, widened_first: Sequence[nn.Module]) -> None:
        for module in widened_first:
            self.before(module, ())
        for module in model.modules():
            # Modules that own weights; and the patch embedding, ours reads those of its child.
            reads_child = hasattr(module, "proj") and isinstance(module.proj, nn.Conv3d)
            if reads_child or list(module.parameters(recurse=False)):
                self.hooks.append(module.register_forward_pre_hook(self.before))
                self.hooks.append(module.register_forward_hook(self.after, always_call=True))

    def stop(self) -> None:
        for hook in self.hooks:
            hook.remove()
        for p, data in self.stored.items():
            p.data = data
        self.stored = {}

    def before(self, module: nn.Module, args: tuple) -> tuple:
        """Hook: widen the weights and the inputs."""
        for p in module.parameters():
            if p not in self.stored:
                self.stored[p] = p.data
                p.data = p.data.float()
        return tuple(widen(x) for x in args)

    def after(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        """Hook: put the stored weights back."""
        for p in module.parameters():
            if p in self.stored:
                p.data = self.stored.pop(p)


def widen(x: object) -> object:
    """A floating-point tensor in float32; anything else as it is."""
    is_float = isinstance(x, Tensor) and x.is_floating_point()
    return x.float() if is_float else x


@contextlib.contextmanager
def in_float32(model: nn.Module, widened_first: Sequence[nn.Module] = ()) -> Iterator[None]:
    """Let a model compute in float32 in the `with` block, from the weights that it has.

    widened_first: modules whose weights are wide before their turn comes, too.
    """
    widening = Widening()
    widening.start(model, widened_first)
    try:
        yield
    finally:
        widening.stop()
