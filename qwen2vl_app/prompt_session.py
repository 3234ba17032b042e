"""Lines typed with prompt_toolkit, where it is installed: nothing else here imports it."""

from collections.abc import Callable, Iterable

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document


class LineCompleter(Completer):
    """Completes whole lines."""

    def __init__(self, complete: Callable[[str], list[str]]) -> None:
        self.complete = complete

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
        line = document.text_before_cursor
        for candidate in self.complete(line):
            yield Completion(candidate, start_position=-len(line))


class Session:
    """Reads lines with history, arrow keys and completion by the tab key."""

    def __init__(self, complete: Callable[[str], list[str]]) -> None:
        self.session: PromptSession[str] = PromptSession(
            completer=LineCompleter(complete), complete_while_typing=False
        )

    def read(self, prompt: str) -> str:
        """The next line. EOFError for Ctrl-D, KeyboardInterrupt for Ctrl-C."""
        return self.session.prompt(prompt)
