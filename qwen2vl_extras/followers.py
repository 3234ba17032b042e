"""The command line on several processes: the first runs it, the others compute along with it.

Whatever the first process does, a question, a chat or a batch of many lines, it computes by calling
a few modules of the model. Before each of these calls it tells the others the module and the
arguments, and they make the same call. Tokens are chosen by the first process alone: to the others
the next token is an argument as any other.
"""

import sys
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwen2vl_extras.processes import LAUNCH, is_follower, receive, report, send

if TYPE_CHECKING:  # names of types only: when this runs, it imports nothing from above
    from qwen2vl import KVCache, Qwen2VLForConditionalGeneration

# What is called from outside the model; all others are called by these.
ENTRIES = ("", "visual", "model", "model.embed_tokens", "lm_head")


@dataclass(frozen=True)
class CacheState:
    """A cache of the first process. Each of the others has one like it, with heads of its own."""

    number: int  # which one
    batch: int
    capacity: int
    length: int  # tokens that it holds


class Call(NamedTuple):
    """A call of a module; its tensors are on the CPU, and its caches are states of them."""

    entry: str  # one of ENTRIES
    arguments: object
    named: object
    caches: set[int]  # the numbers of those that are still in use


# -------------------------------------------------------------------------------- the first process


class Leader:
    """Tells the other processes what this one computes, by hooks on the entries of its model."""

    def __init__(self, model: "Qwen2VLForConditionalGeneration") -> None:
        self.depth = 0  # calls that are going on, one inside the other
        self.names: dict[nn.Module, str] = {}
        self.numbers: weakref.WeakKeyDictionary[object, int] = weakref.WeakKeyDictionary()
        self.num_caches = 0  # there ever were
        for name in ENTRIES:
            module = model.get_submodule(name)
            self.names[module] = name
            # Before the hooks of `parallelize_module`, which make DTensors of the arguments.
            module.register_forward_pre_hook(self.before, with_kwargs=True, prepend=True)
            module.register_forward_hook(self.after, always_call=True)

    def before(self, module: nn.Module, arguments: tuple, named: dict) -> None:
        """Hook: a call begins. What is inside another call, the others make by themselves."""
        self.depth += 1
        if self.depth == 1:
            entry = self.names[module]
            packed = self.packed(arguments), self.packed(named)
            send(Call(entry, *packed, set(self.numbers.values())))

    def after(self, module: nn.Module, arguments: tuple, result: object) -> None:
        """Hook: a call has ended, also with an error."""
        self.depth -= 1
        error = sys.exc_info()[1]
        # A ValueError is about the arguments: the others have the same one. Any other error, such
        # as too little memory, is of this process alone, in the middle of what all compute.
        if error is None or isinstance(error, ValueError):
            return
        time.sleep(1)  # where another process was lost, the lifeline says so within this time
        report(f"error: {error}", status=2)
        raise SystemExit(2)

    def packed(self, value: object) -> object:
        """An argument, or several, as it is sent."""
        if isinstance(value, Tensor):
            return value.detach().to("cpu", copy=True)  # not a part of something larger
        if isinstance(value, tuple | list):
            return type(value)(self.packed(one) for one in value)
        if isinstance(value, Mapping):
            return {name: self.packed(one) for name, one in value.items()}
        if hasattr(value, "capacity"):
            return self.state_of(cast("KVCache", value))
        return value

    def state_of(self, cache: "KVCache") -> CacheState:
        """What the others need to know of a cache."""
        if cache not in self.numbers:
            self.num_caches += 1
            self.numbers[cache] = self.num_caches
        batch = cache.keys.shape[1]
        return CacheState(self.numbers[cache], batch, cache.capacity, cache.length)


def lead(model: "Qwen2VLForConditionalGeneration") -> None:
    """In the first process of a command line: let the others compute with it from now on."""
    if LAUNCH.is_command_line and not is_follower():
        LAUNCH.has_followers = True
        Leader(model)


# --------------------------------------------------------------------------------- all the others


class Follower:
    """Computes what the first process computes."""

    def __init__(self, model: "Qwen2VLForConditionalGeneration") -> None:
        self.model = model
        self.caches: dict[int, KVCache] = {}  # by the first process's numbers

    @torch.no_grad()
    def run(self) -> None:
        """Make the calls of the first process until it makes no more."""
        call = receive()
        while isinstance(call, Call):
            self.make(call)
            call = receive()

    def make(self, call: Call) -> None:
        for number in set(self.caches) - call.caches:
            del self.caches[number]
        arguments = self.unpacked(call.arguments)
        named = self.unpacked(call.named)
        assert isinstance(arguments, tuple)
        assert isinstance(named, dict)
        try:
            result = self.model.get_submodule(call.entry)(*arguments, **named)
        except ValueError:
            return  # the first process has the same one, and says so
        # Nobody looks at the result here; but an exchange that it comes from has to end.
        getattr(result, "logits", result).clone()

    def unpacked(self, value: object) -> object:
        """An argument, or several, as it was before it was sent."""
        if isinstance(value, Tensor):
            return value.to(self.model.device)
        if isinstance(value, tuple | list):
            return type(value)(self.unpacked(one) for one in value)
        if isinstance(value, dict):
            return {name: self.unpacked(one) for name, one in value.items()}
        if isinstance(value, CacheState):
            return self.cache_of(value)
        return value

    def cache_of(self, state: CacheState) -> "KVCache":
        """This process's own cache in the state that the first process tells."""
        if state.number not in self.caches:
            self.caches[state.number] = self.model.make_cache(state.batch, state.capacity)
        cache = self.caches[state.number]
        missing = state.capacity - cache.capacity
        if missing > 0:  # it has grown
            cache.keys = F.pad(cache.keys, (0, 0, 0, missing))
            cache.values = F.pad(cache.values, (0, 0, 0, missing))
            cache.capacity = state.capacity
        cache.length = state.length
        return cache


def follow(model: "Qwen2VLForConditionalGeneration") -> None:
    """Compute what the first process computes, until it computes no more."""
    Follower(model).run()
