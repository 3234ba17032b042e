"""A chat on the command line: a question a line from stdin, answers to stdout, the rest to stderr.

Lines that begin with a slash are commands; `/help` lists them.
"""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from processor import Item
from qwen2vl_app.conversation import ContextFull, Conversation
from qwen2vl_app.line_input import LineInput, complete_path
from qwen2vl_app.saved_conversation import read_messages, save_messages
from qwen2vl_extras.errors import shorten, suggestion
from qwen2vl_extras.sources import URL_SCHEMES, describe, existing_path

HELP = {
    "/image": ("PATH", "show an image with the next question; a path or URL, repeatable"),
    "/video": ("PATH", "show a video with the next question"),
    "/undo": (
        "",
        "take back the last image or video given, or else the last question and its answer",
    ),
    "/reset": ("", "begin anew: forget all questions, answers and images"),
    "/save": ("FILE", "write the conversation to a file, as JSON"),
    "/load": ("FILE", "go on with a conversation that was saved"),
    "/help": ("", "show these lines"),
    "/quit": ("", "end the chat; so do /exit, Ctrl-D, and Ctrl-C at the prompt"),
    "/exit": ("", "the same as /quit"),
}
WELCOME = "/help lists the commands; Ctrl-C ends an answer, /quit the chat"
GOES_WITH_NEXT = "goes with the next question"
OUT_OF_MEMORY = "out of memory: lower --max-pixels or --fps"


class Chat:
    """Questions and commands, one a line; an error costs its line and nothing else.

    answer: prints the answer to a question, given as the items of a message. media: images and
    videos that go with the first question. fps: of videos; None for the default.
    """

    def __init__(
        self,
        conversation: Conversation,
        answer: Callable[[list[Item]], None],
        media: list[Item],
        fps: float | None = None,
    ) -> None:
        self.conversation = conversation
        self.answer = answer
        self.fps = fps
        self.attached: list[Item] = []  # goes with the next question
        for item in media:
            self.attach(item)

    def run(self, first_question: str | None = None) -> None:
        """Take lines until stdin ends or /quit. KeyboardInterrupt if Ctrl-C comes at the prompt."""
        if sys.stdin is None:
            raise ValueError("--chat reads its questions from stdin, which is closed")
        print(WELCOME, file=sys.stderr)
        if first_question is not None:
            self.take(first_question, is_command=False)
        lines = LineInput(self.complete)
        while True:
            try:
                line = lines.read("> ").strip()
            except EOFError:
                print(file=sys.stderr)  # what comes next begins a line
                return
            if line in ("/quit", "/exit"):
                return
            if line:
                self.take(line, is_command=line.startswith("/"))

    def take(self, line: str, is_command: bool) -> None:
        """Do what a line says; what is wrong with it is said in one line."""
        try:
            if is_command:
                self.command(line)
            else:
                self.ask(line)
        except ContextFull as error:
            print(f"error: {error}: /reset begins anew", file=sys.stderr)
        except (ValueError, OSError, MemoryError, torch.OutOfMemoryError) as error:
            print(f"error: {str(error) or OUT_OF_MEMORY}", file=sys.stderr)
        except KeyboardInterrupt:  # while a command opens a video, say
            print("interrupted", file=sys.stderr)

    # ------------------------------------------------------------------------------- questions

    def ask(self, text: str) -> None:
        """Ask a question with the images that were given; Ctrl-C ends the answer."""
        before = len(self.conversation.messages)
        try:
            self.answer([*self.attached, {"type": "text", "text": text}])
        except KeyboardInterrupt:
            # The answer's words so far are part of the conversation. Without a word there is no
            # question either, and its images go with the next one.
            was_answered = len(self.conversation.messages) > before
            if was_answered:
                print(flush=True)  # the line of the answer ends
            kept = "what was said stays" if was_answered else "the question is taken back"
            print(f"interrupted: {kept}", file=sys.stderr)
        finally:
            if len(self.conversation.messages) > before:
                self.attached = []
        if self.conversation.tokens_left < 1:
            limit = self.conversation.model.config.max_position_embeddings
            print(
                f"the context of {limit} tokens is full: /reset begins anew, /undo takes the last "
                "question back",
                file=sys.stderr,
            )

    def attach(self, item: Item) -> None:
        """Open an image or video, which goes with the next question."""
        kind = item["type"]
        if kind == "video" and self.fps is not None:
            item["fps"] = self.fps
        opened = self.conversation.open(item)
        self.attached.append(item)
        size = f"{opened.medium.num_tokens} tokens"
        print(f"{kind} of {size}: {GOES_WITH_NEXT}", file=sys.stderr)

    # -------------------------------------------------------------------------------- commands

    def command(self, line: str) -> None:
        """Run a command; ValueError for one that is unknown, or has no or too much behind it."""
        name, _, argument = line.partition(" ")
        argument = argument.strip()
        if name not in HELP:
            raise ValueError(f"no command {shorten(name)}{suggestion(name, HELP)}")
        wanted, _ = HELP[name]
        if wanted and not argument:
            raise ValueError(f"{name} takes a {wanted.lower()}: {name} {wanted}")
        if argument and not wanted:
            raise ValueError(f"{name} takes nothing behind it, not {shorten(argument)}")

        if name in ("/image", "/video"):
            self.attach(self.item_at(name[1:], argument))
        elif name == "/undo":
            self.undo()
        elif name == "/reset":
            self.conversation.reset()
            self.attached = []
            print("all is forgotten: the next question begins anew", file=sys.stderr)
        elif name == "/save":
            self.save(clean_path(argument))
        elif name == "/load":
            self.load(clean_path(argument))
        else:
            self.help()

    def help(self) -> None:
        for name, (argument, meaning) in HELP.items():
            print(f"  {name + ' ' + argument:12} {meaning}", file=sys.stderr)

    def item_at(self, kind: str, place: str) -> Item:
        """The item of an image or video; FileNotFoundError if nothing is there."""
        scheme = place.partition(":")[0].lower()
        if scheme in (*URL_SCHEMES, "data", "file"):
            return {"type": kind, kind: place}
        path = find_path(place)
        if path is None:
            raise FileNotFoundError(f"no such {kind}: {describe(place)}")
        return {"type": kind, kind: path}

    def undo(self) -> None:
        """Take back what came last: an image that waits for its question, or a question.

        The images of a question that is taken back wait for the next one.
        """
        if self.attached:
            item = self.attached.pop()
            print(f"taken back: {describe(item[item['type']])}", file=sys.stderr)
            return
        question = self.conversation.undo()[0]
        print(f"taken back: {shorten(text_of(question))}", file=sys.stderr)
        if isinstance(question["content"], list):
            self.attached = [item for item in question["content"] if item["type"] != "text"]
        for item in self.attached:
            print(f"its {item['type']} {GOES_WITH_NEXT}", file=sys.stderr)

    def save(self, path: Path) -> None:
        save_messages(path, self.conversation.messages)
        print(f"saved: {path}", file=sys.stderr)

    def load(self, path: Path) -> None:
        messages = read_messages(path)
        # What can't be opened or read is said now, and then the chat goes on as it was.
        if messages:
            self.conversation.writer.write(messages)
        self.conversation.messages = messages
        self.attached = []
        questions = [text_of(one) for one in messages if one["role"] == "user"]
        last = f", the last of them {shorten(questions[-1])}" if questions else ""
        print(f"loaded: questions: {len(questions)}{last}", file=sys.stderr)

    # ------------------------------------------------------------------------------ completion

    def complete(self, line: str) -> list[str]:
        """The lines that a line which is being typed may become with the tab key."""
        name, blank, argument = line.partition(" ")
        if not blank:
            starts = [known for known in HELP if known.startswith(name)]
            return [f"{known} " if HELP[known][0] else known for known in starts]
        if name not in HELP or not HELP[name][0]:
            return []
        return [f"{name} {path}" for path in complete_path(argument.lstrip())]


def find_path(place: str) -> str | None:
    """The path that someone has typed: as it stands, with ~, in quotes, or as a shell has it."""
    path = existing_path(place, is_url=False)
    if path is None:
        words = shell_words(place)
        if len(words) == 1:
            path = existing_path(words[0], is_url=False)
    return path


def shell_words(text: str) -> list[str]:
    """A text as a shell would cut it; [] for one whose quotes have no end."""
    try:
        return shlex.split(text)
    except ValueError:
        return []


def clean_path(argument: str) -> Path:
    """The path of a file that may not be there yet; quotes around it and ~ are understood."""
    if len(argument) > 1 and argument[0] == argument[-1] and argument[0] in "\"'":
        argument = argument[1:-1]
    return Path(argument).expanduser()


def text_of(message: dict) -> str:
    """What a message says in words."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return " ".join(item["text"] for item in content if item.get("type") == "text")
