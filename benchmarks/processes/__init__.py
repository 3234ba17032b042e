"""Small programs that run in processes of their own, and the call that starts one."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def run_python(arguments: list[str]) -> str:
    """Run Python with these arguments at the top of the clone; returns what it wrote to stdout.

    RuntimeError, with the last line it wrote to stderr, if it failed.
    """
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        last_lines = done.stderr.strip().splitlines()[-1:]
        reason = "".join(last_lines) or f"exit code {done.returncode}"
        raise RuntimeError(f"`python {' '.join(arguments)}` failed: {reason}")
    return done.stdout


def status_is_readable() -> bool:
    """Whether the system tells a process its memory as `memory_in_status` reads it."""
    return Path("/proc/self/status").exists()


def memory_in_status(name: str) -> int:
    """Bytes of this process: "VmRSS" now, "VmHWM" at the peak. Only Linux has this file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return 1024 * int(line.split()[1])  # in kB
    raise OSError(f"/proc/self/status has no {name}")
