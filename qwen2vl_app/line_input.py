"""Reading lines that someone types: with history, arrow keys and completion where there is a
terminal, plainly where lines come from a file or pipe.
"""

import importlib.util
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwen2vl_app.prompt_session import Session

Complete = Callable[[str], list[str]]  # the lines that a beginning of one may become


class LineInput:
    """Reads one line after the other. On a terminal prompt_toolkit does it where it is installed,
    else readline, if Python has it.
    """

    def __init__(self, complete: Complete) -> None:
        self.complete = complete
        self.candidates: list[str] = []  # of the last completion
        self.session: Session | None = None
        # With a prompt of its own, readline writes to stdout: fine where that is the terminal.
        self.is_terminal = sys.stdin.isatty() and sys.stdout is not None and sys.stdout.isatty()
        if not self.is_terminal:
            if hasattr(sys.stdin, "reconfigure"):
                sys.stdin.reconfigure(errors="surrogateescape")  # a wrong byte costs its line only
            return
        self.session = open_session(complete)
        if self.session is None and importlib.util.find_spec("readline") is not None:
            self.use_readline()

    def read(self, prompt: str) -> str:
        """The next line. EOFError at the end of the input, KeyboardInterrupt for Ctrl-C."""
        if self.session is not None:
            return self.session.read(prompt)
        if self.is_terminal:
            return input(prompt)
        # On stdout there are answers only.
        print(prompt, end="", file=sys.stderr, flush=True)
        return input()

    def use_readline(self) -> None:
        """Give `input` history, arrow keys and completion."""
        import readline

        readline.set_completer(self.candidate)
        readline.set_completer_delims("\n")  # lines are completed as a whole
        is_libedit = "libedit" in (readline.__doc__ or "")
        readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")

    def candidate(self, line: str, number: int) -> str | None:
        """What readline asks for: the candidates for a line one by one, then None."""
        if number == 0:
            self.candidates = self.complete(line)
        return self.candidates[number] if number < len(self.candidates) else None


def open_session(complete: Complete) -> "Session | None":
    """A session of prompt_toolkit; None if it isn't installed or the terminal is too simple."""
    is_simple = os.environ.get("TERM", "dumb") == "dumb"
    if is_simple or importlib.util.find_spec("prompt_toolkit") is None:
        return None
    from qwen2vl_app.prompt_session import Session  # here: slow to import and seldom there

    return Session(complete)


def complete_path(typed: str) -> list[str]:
    """The paths that the beginning of one may become, quotes and ~ kept as they were typed."""
    quote = typed[:1] if typed[:1] in ("'", '"') else ""
    typed = typed[len(quote) :]
    beginning = typed.rpartition("/")[2]
    shown = typed[: len(typed) - len(beginning)]  # the folder with its slash
    try:
        names = sorted(os.listdir(os.path.expanduser(shown) or "."))
    except OSError:
        return []
    paths = []
    for name in names:
        is_hidden = name.startswith(".") and not beginning.startswith(".")
        if is_hidden or not name.startswith(beginning):
            continue
        is_folder = os.path.isdir(os.path.join(os.path.expanduser(shown), name))
        end = "/" if is_folder else quote
        paths.append(f"{quote}{shown}{name}{end}")
    return paths
