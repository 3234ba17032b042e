"""One model shared by several processes, each on a GPU of its own: tensor parallelism.

`torchrun --nproc-per-node 8 qwen2vl.py --model Qwen/Qwen2-VL-72B-Instruct --image a.jpg` starts
eight processes. Each holds an eighth of every matrix, of the heads, and of the cache.

PLAN says how each layer is divided. Two matrices that follow one another make a pair: of the
first a process has some of the outputs ("columns", as the paper of Megatron-LM, arXiv 1909.08053,
calls them: it writes x A, PyTorch x A.T), and of the second the inputs that go with them ("rows").
What the second gives in each process is one term of a sum. One exchange after each pair adds the
terms; norms, residuals and rotations are computed by all processes alike.

PyTorch does this: `parallelize_module` lets linear layers and the embedding compute with DTensors
and puts the exchanges in place. Here stand the plan, and the slices that a process reads from
the files.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from qwen2vl_extras import memory
from qwen2vl_extras.errors import note
from qwen2vl_extras.followers import lead
from qwen2vl_extras.processes import LAUNCH, count_processes, started_by_torchrun

if TYPE_CHECKING:  # names of types only: when this runs, it imports nothing from above
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.parallel import ParallelStyle

    from qwen2vl import Qwen2VLConfig, Qwen2VLForConditionalGeneration

# How each module is divided; all others are whole in every process.
PLAN = {
    "model.embed_tokens": "vocabulary",
    "model.layers.*.self_attn.q_proj": "columns",
    "model.layers.*.self_attn.k_proj": "columns",
    "model.layers.*.self_attn.v_proj": "columns",
    "model.layers.*.self_attn.o_proj": "rows",
    "model.layers.*.mlp.gate_proj": "columns",
    "model.layers.*.mlp.up_proj": "columns",
    "model.layers.*.mlp.down_proj": "rows",
    "lm_head": "gathered columns",
    "visual.blocks.*.attn.qkv": "columns",
    "visual.blocks.*.attn.proj": "rows",
    "visual.blocks.*.mlp.fc1": "columns",
    "visual.blocks.*.mlp.fc2": "rows",
    "visual.merger.mlp.0": "columns",
    "visual.merger.mlp.2": "rows",
}


def style_in_plan(module: str) -> str | None:
    """How PLAN divides the module of this path; None: not at all."""
    for pattern, style in PLAN.items():
        if fnmatch(module, pattern):
            return style
    return None


# ------------------------------------------------------------------------------------- who shares


def wants_processes(tp_plan: str | None, device_map: str | torch.device) -> bool:
    """Whether `from_pretrained` shares the model among the processes of this launch.

    tp_plan (so called in `transformers`): "auto" asks for it, and is a ValueError in a process
    that has no others. Without it device_map="auto" does so under torchrun.
    """
    if tp_plan not in (None, "auto"):
        raise ValueError(f"tp_plan is {tp_plan!r:.99}, 'auto' or None is needed")
    if tp_plan is None:
        is_asked = LAUNCH.is_command_line or str(device_map) == "auto"
        is_shared = is_asked and started_by_torchrun()
    else:
        if count_processes() is None:
            raise ValueError("tp_plan='auto' needs several processes: start them with torchrun")
        is_shared = count_processes() != 1
    return is_shared


def allowed_counts(config: "Qwen2VLConfig") -> list[int]:
    """How many processes can share a model: each gets whole heads, and as many as all others."""
    heads = config.num_attention_heads
    kv_heads = config.num_key_value_heads
    vision_heads = config.vision_config.num_heads
    counts = []
    for count in range(1, heads + 1):
        divides_queries = heads % count == 0 and vision_heads % count == 0
        # With more processes than key-value heads several hold the same one.
        divides_keys = kv_heads % count == 0 or count % kv_heads == 0
        if divides_queries and divides_keys:
            counts.append(count)
    return counts


def check_count(config: "Qwen2VLConfig", count: int) -> None:
    """ValueError, with the counts that work, unless so many processes can share the model."""
    counts = allowed_counts(config)
    if count not in counts:
        listed = ", ".join(str(number) for number in counts)
        raise ValueError(
            f"{count} processes can't share this model of {config.num_attention_heads} query, "
            f"{config.num_key_value_heads} key-value and {config.vision_config.num_heads} vision "
            f"heads: torchrun --nproc-per-node takes {listed}"
        )


# ------------------------------------------------------------------------------------- the slices


class Sliceable(Protocol):
    """A tensor in memory or, as `get_slice` of safetensors gives it, in a file."""

    def __getitem__(self, index: slice | tuple[slice, ...], /) -> Tensor: ...


class Slice(NamedTuple):
    """Which part of a tensor a process holds: ranges of one axis, end to end, then zeros.

    The zeros make all processes' parts equally long. They change no result: what comes out of the
    first matrix of a pair for them is 0, and the second multiplies it by 0.
    """

    axis: int
    ranges: list[tuple[int, int]]  # start and end
    zeros: int


@dataclass(frozen=True)
class Part:
    """The part of the model that belongs to one of the processes that share it."""

    config: "Qwen2VLConfig"  # of the whole model
    rank: int  # of this process, from 0
    count: int  # of processes
    device: str  # of this process
    neighbours: int  # processes on this machine, this one included

    def axis_of(self, path: str) -> int | None:
        """The axis along which a parameter of this path is divided; None: it is whole."""
        module, _, name = path.rpartition(".")
        style = style_in_plan(module)
        if style is None:
            return None
        if style == "rows":
            # Outputs are sums over all processes, to which the bias is added once.
            return None if name == "bias" else 1
        return 0

    def slice_of(self, path: str, shape: tuple[int, ...]) -> Slice | None:
        """What this process holds of a parameter of the whole model; None: all of it."""
        axis = self.axis_of(path)
        if axis is None:
            return None
        size = shape[axis]
        module_path = path.rpartition(".")[0]
        module = module_path.rpartition(".")[2]
        if module in ("k_proj", "v_proj"):
            return Slice(axis, [self.key_value_range()], 0)
        if module == "qkv":  # queries, keys and values of all heads, one above the other
            third = size // 3
            start, end = self.even_range(third)
            return Slice(axis, [(start + i * third, end + i * third) for i in range(3)], 0)
        # Whole heads, or some of the inner values of an MLP, or of the vocabulary.
        start, end = self.even_range(size)
        # The vocabulary has no zeros: a token more would be a token that can be generated.
        is_padded = style_in_plan(module_path) in ("columns", "rows")
        longest = -(-size // self.count)  # rounded up
        return Slice(axis, [(start, end)], longest - (end - start) if is_padded else 0)

    def even_range(self, size: int) -> tuple[int, int]:
        """This process's range of so many: as long as all others, but for the last ones."""
        longest = -(-size // self.count)
        start = min(self.rank * longest, size)
        return start, min(start + longest, size)

    def key_value_range(self) -> tuple[int, int]:
        """The rows of k_proj and v_proj: those of the heads that this process's queries need."""
        head_dim = self.config.head_dim
        first = self.rank * self.config.num_key_value_heads // self.count
        return first * head_dim, (first + self.num_kv_heads) * head_dim

    @property
    def num_kv_heads(self) -> int:
        """Key-value heads of this process: at least one, which several then hold."""
        return max(1, self.config.num_key_value_heads // self.count)

    def shape_of(self, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of what this process holds of a parameter of the whole model."""
        piece = self.slice_of(path, shape)
        if piece is None:
            return shape
        held = list(shape)
        held[piece.axis] = piece.zeros + sum(end - start for start, end in piece.ranges)
        return tuple(held)

    def read(self, path: str, stored: Sliceable, shape: tuple[int, ...]) -> Tensor:
        """This process's part of a parameter; stored: all of it, of that shape.

        Of a file no more than the part is read. Rows stay where they are mapped. Columns are
        copied, since in the file they lie apart.
        """
        piece = self.slice_of(path, shape)
        if piece is None:
            return stored[:]
        if piece.axis == 0:
            parts = [stored[start:end] for start, end in piece.ranges]
        else:
            parts = [stored[:, start:end] for start, end in piece.ranges]
        if piece.zeros:
            padding = list(shape)
            padding[piece.axis] = piece.zeros
            parts.append(parts[0].new_zeros(padding))
        if len(parts) == 1:
            return parts[0].contiguous()
        return torch.cat(parts, dim=piece.axis)

    def count_bytes(self, shapes: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int]) -> int:
        """Bytes of the weights in this process; shapes, sizes: of the whole parameters, by path."""
        total = 0
        for path, shape in shapes.items():
            held = math.prod(self.shape_of(path, shape))
            total += sizes[path] * held // math.prod(shape)
        return total

    def check_memory(self, held: int, sizes: Mapping[str, int], free: float) -> None:
        """MemoryError, with both numbers, unless the weights and a prompt fit in `free` bytes.

        held: bytes of the weights in this process; sizes: of all parameters, by path.
        """
        # Processes on the CPU of one machine take from the same memory.
        takers = self.neighbours if self.device == "cpu" else 1
        itemsize = sizes["model.norm.weight"] // self.config.hidden_size
        prompt = memory.prompt_bytes(self.config, self.count, itemsize, memory.USUAL_TOKENS)
        needed = takers * (held + prompt)
        if needed > free:
            raise MemoryError(
                f"{takers} of {self.count} processes on this {self.device} take "
                f"{needed / 1e9:.1f} GB ({takers * held / 1e9:.1f} GB of weights, and cache and "
                f"activations of {memory.USUAL_TOKENS:,} tokens), {free / 1e9:.1f} GB are free"
            )
        if self.rank == 0:
            note(f"{self.count} processes share the model, {held / 1e9:.2f} GB of weights in each")


# ------------------------------------------------------------------------------------ the sharing


def find_part(config: "Qwen2VLConfig", device_map: str | torch.device) -> Part:
    """This process's part of a model that is shared, once it is connected to the others.

    device_map: "auto", "cuda" or "cpu". ValueError where the model can't be shared so.
    """
    count = count_processes()
    assert count is not None
    check_count(config, count)
    neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", count))
    device = own_device(device_map, neighbours)
    LAUNCH.join()
    return Part(config, dist.get_rank(), count, device, neighbours)


def own_device(device_map: str | torch.device, neighbours: int) -> str:
    """The device of this process: the CUDA device of its number on this machine, or the CPU."""
    kind = str(device_map)
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind not in ("cuda", "cpu"):
        raise ValueError(
            f"device is {kind!r:.99}: processes that share a model take 'auto', 'cuda' (each its "
            "own device) or 'cpu'"
        )
    if kind == "cpu":
        return kind
    found = torch.cuda.device_count()
    if neighbours > found:
        raise ValueError(
            f"{neighbours} processes on this machine need a CUDA device each, there are {found}"
        )
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    torch.cuda.set_device(device)
    return device


def style_of(name: str) -> "ParallelStyle":
    """What PyTorch calls a style of PLAN."""
    # Here: they take a second to import and are seldom needed.
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

    if name == "columns":
        return ColwiseParallel()
    if name == "gathered columns":
        return ColwiseParallel(use_local_output=False)
    if name == "vocabulary":
        return RowwiseParallel(input_layouts=Replicate())
    return RowwiseParallel()


def share(model: "Qwen2VLForConditionalGeneration", part: Part) -> None:
    """Let a model whose parameters are this process's parts compute with the other processes."""
    # Here: they take a second to import and are seldom needed.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import parallelize_module

    mesh = init_device_mesh(torch.device(part.device).type, (part.count,))
    for path, parameter in list(model.named_parameters()):
        mark_part(model, path, parameter, mesh, part)
    model.tie_weights()  # the head is the embedding table once more, which was marked
    styles = {pattern: style_of(style) for pattern, style in PLAN.items()}
    parallelize_module(model, mesh, styles)
    model.lm_head.register_forward_hook(take_logits)
    model.tie_weights()  # and once more: now both are other objects

    # From here on the config has the key-value heads of this process, which its cache holds.
    own_config = replace(model.config, num_key_value_heads=part.num_kv_heads)
    model.config = own_config
    model.model.config = own_config
    model.mesh = mesh
    lead(model)


def take_logits(head: nn.Module, inputs: tuple, logits: "DTensor") -> Tensor:
    """A hook that gathers the head's columns from all processes into a plain tensor.

    PyTorch's style could do it, but gives a tensor that is still on its way and can't be saved.
    """
    return logits.full_tensor()


def mark_part(
    model: nn.Module, path: str, parameter: nn.Parameter, mesh: "DeviceMesh", part: Part
) -> None:
    """Make a parameter a DTensor, which knows that it is a part and which one."""
    from torch.distributed.tensor import DTensor, Replicate, Shard

    module_path, _, name = path.rpartition(".")
    style = style_in_plan(module_path)
    if style is None:
        return
    axis = part.axis_of(path)
    placement = Replicate() if axis is None else Shard(axis)
    # The vocabulary is the one thing that may be divided unevenly: here its whole shape is needed.
    shape = None
    stride = None
    if style in ("vocabulary", "gathered columns"):
        width = part.config.hidden_size
        shape = torch.Size((part.config.vocab_size, width))
        stride = (width, 1)
    divided = DTensor.from_local(
        parameter.detach(), mesh, [placement], run_check=False, shape=shape, stride=stride
    )
    module = model.get_submodule(module_path)
    module.register_parameter(name, nn.Parameter(divided, parameter.requires_grad))


def check_compile(model: "Qwen2VLForConditionalGeneration") -> None:
    """ValueError for a model that can't be decoded with compile=True."""
    if model.mesh is not None:
        raise ValueError(
            f"compile=True needs a model of one process, {model.mesh.size()} processes share this"
        )
    if model.layout is not None:
        count = len(set(model.layout.devices))
        raise ValueError(f"compile=True needs a model on one device, this is on {count}")
