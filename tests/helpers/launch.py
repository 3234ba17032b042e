"""Several processes as torchrun starts them, but without torchrun, which would end them all."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from tests.helpers.interrupts import take_interrupts

ROOT = Path(__file__).parent.parent.parent
SECONDS = 900.0  # until a launch counts as hanging


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(rank: int, count: int, port: int) -> dict[str, str]:
    """What torchrun sets for a process."""
    stated = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "TORCHELASTIC_RUN_ID": "test",
        "OMP_NUM_THREADS": 1,
    }
    return {**os.environ, **{name: str(value) for name, value in stated.items()}}


class Launch:
    """`count` processes of one command line of Python; their output is kept apart."""

    def __init__(
        self, count: int, *arguments: str, stdin: bool = False, stdout: str | None = None
    ) -> None:
        port = free_port()
        self.processes: list[subprocess.Popen[str]] = []
        for rank in range(count):
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, *arguments],
                    cwd=ROOT,
                    env=environment(rank, count, port),
                    text=True,
                    stdin=subprocess.PIPE if stdin and rank == 0 else subprocess.DEVNULL,
                    stdout=subprocess.PIPE if stdout is None else open(stdout, "w"),  # noqa: SIM115
                    stderr=subprocess.PIPE,
                    preexec_fn=take_interrupts,
                )
            )

    def finish(self, given: str | None = None) -> tuple[list[int], list[str], list[str]]:
        """Exit statuses, and what each wrote to stdout and stderr; given: stdin of the first."""
        codes, outs, errors = [], [], []
        try:
            for rank, process in enumerate(self.processes):
                stdin = given if rank == 0 else None
                out, error = process.communicate(stdin, timeout=SECONDS)
                codes.append(process.returncode)
                outs.append(out or "")
                errors.append(error)
        finally:
            for process in self.processes:
                process.kill()
        return codes, outs, errors
