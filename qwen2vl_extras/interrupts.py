"""Ctrl-C ends a program with exit code 130 and a new line on stderr, and without a traceback.

Python raises KeyboardInterrupt wherever the program happens to be. Inside `main` of the command
line that is caught; while files are imported, or when Python ends, nobody is there to catch it.
"""

import atexit
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

EXIT_CODE = 130  # what shells report of a program that Ctrl-C has ended


def exit_at_once(signal_number: int = 0, frame: FrameType | None = None) -> NoReturn:
    """End the process, and run nothing more of it."""
    if sys.stderr is not None:  # else file 2 may be something else
        os.write(2, b"\n")
    os._exit(EXIT_CODE)


def exit_on_ctrl_c() -> None:
    """From now on Ctrl-C ends the process at once; where it is ignored, that stays so."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, exit_at_once)
        # Python's last steps drop every handler, and Ctrl-C would kill what has already answered.
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
        sys.unraisablehook = report_unraisable


def raise_on_ctrl_c() -> bool:
    """From now on Ctrl-C raises KeyboardInterrupt, if so far it ended the process.

    Returns whether it did: then `exit_on_ctrl_c` belongs to the end of what catches it.
    """
    was_ending = signal.getsignal(signal.SIGINT) is exit_at_once
    if was_ending:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return was_ending


def report_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    """Where Python can't raise, say in a destructor, it would print KeyboardInterrupt and go on."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        exit_at_once()
    sys.__unraisablehook__(unraisable)
