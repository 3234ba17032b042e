"""Ctrl-C for processes that tests start."""

import signal


def take_interrupts() -> None:
    """In the new process: tests that run in the background of a shell would hand on SIG_IGN."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
