"""The processes of one launch of torchrun: how they find one another, agree, and end.

A script that torchrun starts runs in all processes alike: each loads its part of the model and
calls `generate` with the same inputs. Of the command line only the first process runs: the others
follow it, and compute whatever it computes (followers.py).
"""

import atexit
import contextlib
import os
import signal
import sys
import time
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from qwen2vl_extras.lifeline import INTERRUPTED, Lifeline

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

# How long a process may wait for the others, say for a question of a chat. Those that are lost are
# found out about by the lifeline.
PATIENCE = timedelta(days=30)
ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what a launcher sets


# ------------------------------------------------------------------------------- finding each other


def started_by_torchrun() -> bool:
    """Whether torchrun has started this process as one of several."""
    return dist.is_available() and dist.is_torchelastic_launched() and count_processes() != 1


def count_processes() -> int | None:
    """How many processes there are, by what the launcher says; None without one."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    if any(name not in os.environ for name in ENVIRONMENT):
        return None
    return int(os.environ["WORLD_SIZE"])


def own_number() -> int:
    """The number of this process, from 0."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    return int(os.environ.get("RANK", "0"))


class Launch:
    """What this process knows of its launch. There is one object, LAUNCH, as there is one default
    group in `torch.distributed`.
    """

    def __init__(self) -> None:
        self.lifeline: Lifeline | None = None
        self.is_command_line = False
        self.has_followers = False  # which wait for what this process is asked

    def join(self) -> None:
        """Connect to the other processes, unless that was done, here or by the caller."""
        if dist.is_initialized():
            return
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE)
        self.lifeline = Lifeline(dist.get_rank(), dist.get_world_size())
        sys.excepthook = self.end_after_error
        atexit.register(self.leave)

    def end_after_error(
        self, kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        """In place of Python's own hook: a traceback from one process, and the end of all."""
        # Where another process was lost, errors of the connections to it come first. In this time
        # the lifeline says what really happened, and ends this process.
        time.sleep(1)
        assert self.lifeline is not None
        text = ""
        if self.lifeline.rank == 0:
            sys.__excepthook__(kind, error, traceback)
        elif kind is not KeyboardInterrupt:
            text = f"error: process {self.lifeline.rank}: {kind.__name__}: {error}"
        status = INTERRUPTED if kind is KeyboardInterrupt else 1
        self.lifeline.report(text, status)
        os._exit(status)

    def leave(self) -> None:
        """At the end of this process: the others need it no more."""
        assert self.lifeline is not None
        if self.has_followers and not self.lifeline.has_spoken:
            # After Ctrl-C the others may have ended already, each by its own signal.
            with contextlib.suppress(RuntimeError):
                send(None)
        elif self.is_command_line and own_number() == 0:
            # There was nothing to compute, but the others are waiting for that.
            self.lifeline.report("", status=0)
        dist.destroy_process_group()
        self.lifeline.finish()


LAUNCH = Launch()


# -------------------------------------------------------------------------------- the command line


def join_command_line() -> None:
    """Under torchrun, let the first process speak for all; elsewhere nothing happens."""
    if not started_by_torchrun():
        return
    LAUNCH.is_command_line = True
    if own_number() != 0:
        silent = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, open to the end
        real_stderr = sys.stderr
        sys.stdout = silent
        sys.stderr = silent
    LAUNCH.join()
    if LAUNCH.lifeline is not None:
        if own_number() != 0:
            LAUNCH.lifeline.stderr = real_stderr
        LAUNCH.lifeline.watch_interrupts()
    # A write to a process that has ended is an error here, and not the end of this one.
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)


def is_follower() -> bool:
    """Whether this process follows another one's command line."""
    return LAUNCH.is_command_line and own_number() != 0


def report(text: str, status: int) -> None:
    """Print an error on stderr, once for all processes, which end with this exit status."""
    if LAUNCH.lifeline is None:
        print(text, file=sys.stderr)
    else:
        LAUNCH.lifeline.report(text, status)


def send(content: object) -> None:
    """From the first process to all others."""
    dist.broadcast_object_list([content], src=0, device=torch.device("cpu"))


def receive() -> object:
    """What the first process sends."""
    content: list[object] = [None]
    dist.broadcast_object_list(content, src=0, device=torch.device("cpu"))
    return content[0]


# -------------------------------------------------------------------------------------- agreeing


def agree(token: Tensor, mesh: "DeviceMesh | None") -> Tensor:
    """The first process's tokens (B,) in all that share a model; mesh: None for a model alone.

    All compute the same logits, but each draws its own random numbers. Of a command line only the
    first process chooses tokens.
    """
    if mesh is None or LAUNCH.has_followers:
        return token
    token = token.contiguous()
    dist.broadcast(token, src=0, group=mesh.get_group())
    return token


def check_same_prompt(input_ids: Tensor, mesh: "DeviceMesh | None") -> None:
    """ValueError unless all processes that share a model were given the same prompt.

    Of a command line only the first process has a prompt.
    """
    if mesh is None or LAUNCH.has_followers:
        return
    prompts: list[list[list[int]] | None] = [None] * mesh.size()
    dist.all_gather_object(prompts, input_ids.tolist(), group=mesh.get_group())
    for number, prompt in enumerate(prompts):
        if prompt != prompts[0]:
            raise ValueError(
                f"processes that share a model need the same prompt: input_ids of process {number} "
                "is not that of process 0"
            )
