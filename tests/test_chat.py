"""The chat: its commands, what a line costs that is wrong, and Ctrl-C, as someone types them."""

import contextlib
import importlib.util
import io
import json
import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from qwen2vl_app import command_line
from qwen2vl_app.chat import HELP
from qwen2vl_app.line_input import complete_path
from tests.helpers.interrupts import take_interrupts

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
SHAPES = "A red circle and a blue star."  # examples/shapes.png
TRIANGLE = "A green triangle."  # examples/triangle.png

needs_terminal = pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo-terminals")


# ------------------------------------------------------------------------- lines from a pipe


@pytest.fixture
def chat(capsys, monkeypatch):
    """`chat(lines, *options)`: exit code, stdout and stderr of a chat with these lines."""

    def run(lines: list[str], *options: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
        code = command_line.main(["--chat", *[str(option) for option in options]])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def errors(err: str) -> list[str]:
    """The messages of all lines on stderr that say what was wrong."""
    return re.findall(r"error: (.*)", err)


def test_the_first_question_comes_from_the_options(chat):
    code, out, _ = chat(
        ["How many objects do you see?"],
        *["--image", EXAMPLES / "shapes.png", "--prompt", "Describe this image."],
    )
    assert (code, out) == (0, f"{SHAPES}\nTwo.\n")


def test_what_an_option_names_must_be_there_before_the_model_is_loaded(capsys, monkeypatch):
    def refuse(args: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(command_line, "load_both", refuse)
    for option, kind in (("--image", "image"), ("--video", "video")):
        assert command_line.main(["--chat", option, "nosuch.png"]) == 2
        assert f"error: no such {kind}: 'nosuch.png'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "99999999999999999999999"], "seed is 99999999999999999999999"),
        (["--temperature", "-1"], "temperature=-1.0"),
        (["--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["--top-p", "7"], "top_p=7.0"),
        (["--image", "data:image/png;base64,AAAA"], "cannot read the image"),
    ],
)
def test_an_option_that_cannot_work_ends_the_chat_before_its_first_question(chat, options, message):
    code, out, err = chat(["Describe this image."], *options)
    assert (code, out) == (2, "")
    (error,) = errors(err)
    assert message in error


def test_commands_show_take_back_forget_keep_and_bring_back(chat, tmp_path):
    saved = tmp_path / "a conversation.json"
    lines = [
        f'/image "{EXAMPLES / "triangle.png"}"',
        f"/image {EXAMPLES / 'shapes.png'}",
        "/undo",  # the second image
        "Describe this image.",
        "What colour is the triangle?",
        "/undo",  # the second question
        "/undo",  # the first, whose image waits again
        "Describe this image.",
        f"/save {saved}",
        "/reset",
        "Describe this image.",
        f"/load '{saved}'",
        "How many objects do you see?",
        "/help",
        "/exit",
        "not reached",
    ]
    code, out, err = chat(lines)
    first, colour, again, forgotten, count = out.splitlines()
    assert code == 0 and errors(err) == []
    assert first == again == TRIANGLE and colour == "Green." and count == "One."
    assert forgotten != TRIANGLE
    for name in HELP:
        assert f"  {name}" in err
    assert [message["role"] for message in json.loads(saved.read_text())] == ["user", "assistant"]
    assert "taken back: 'Describe this image.'" in err


def test_a_saved_conversation_goes_on_as_if_it_had_never_ended(chat, tmp_path, monkeypatch):
    saved = tmp_path / "saved.json"
    monkeypatch.chdir(EXAMPLES)
    lines = ["/image shapes.png", "Describe this image.", "/video moving.mp4", "What moves?"]
    questions = ["How many objects do you see?", "Which way does it move?", "Why?"]
    _, out, err = chat([*lines, f"/save {saved}", *questions])
    assert errors(err) == []
    monkeypatch.chdir(tmp_path)  # paths are those of the disk, whatever the folder is
    _, loaded, err = chat([f"/load {saved}", *questions])
    assert errors(err) == []
    assert loaded.splitlines() == out.splitlines()[2:]
    # What was loaded is saved as it was, and over itself.
    content = saved.read_text(encoding="utf-8")
    chat([f"/load {saved}", f"/save {saved}"])
    assert saved.read_text(encoding="utf-8") == content


WRONG_FILES = {
    "text.json": "hello",
    "number.json": "7",
    "object.json": "{}",
    "role.json": '[{"role": "robot", "content": "a"}]',
    "content.json": '[{"role": "user", "content": 7}]',
    "gone.json": '[{"role": "user", "content": [{"type": "image", "image": "/gone.png"}]}]',
    "deep.json": "[" * 100_000,
    "surrogate.json": '[{"role": "user", "content": "\\ud800"}]',
}


# What an error says where it is not the name of the file.
SAID = {"gone.json": "no such image: '/gone.png'", "surrogate.json": "half a surrogate pair"}


def test_a_line_that_is_wrong_costs_that_line_alone(chat, tmp_path):
    """One line of error each, and the chat goes on where it was."""
    for name, content in WRONG_FILES.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "torn.png").write_bytes((EXAMPLES / "shapes.png").read_bytes()[:200])
    wrong = [
        ("/imag a.png", "no command '/imag': did you mean '/image'?"),
        ("/", "no command '/'"),
        ("/42", "no command '/42'"),
        ("/image", "/image takes a path"),
        ("/image nowhere.png", "no such image: 'nowhere.png'"),
        ("/image 'nowhere", "no such image"),
        (f"/image {tmp_path}", str(tmp_path)),
        (f"/image {tmp_path / 'torn.png'}", "torn.png"),
        ("/image data:image/png;base64,????", "data:"),
        ("/image data:,", "data:"),
        ("/image http://127.0.0.1:1/a.png", "127.0.0.1"),
        ("/image http://[", "http://["),
        (f"/video {tmp_path / 'empty.mp4'}", "empty.mp4"),
        ("/undo twice", "/undo takes nothing behind it"),
        ("/quit now", "/quit takes nothing behind it"),
        ("/save", "/save takes a file"),
        (f"/save {tmp_path / 'no' / 'folder.json'}", "folder.json"),
        (f"/save {tmp_path / 'notes.txt'}", "notes.txt is there and not overwritten"),
        (f"/load {tmp_path / 'nowhere.json'}", "nowhere.json"),
        *[(f"/load {tmp_path / name}", SAID.get(name, name)) for name in WRONG_FILES],
        ("\udce9\ud800", "surrogate"),
    ]
    lines = [f"/image {EXAMPLES / 'shapes.png'}", *[line for line, _ in wrong]]
    code, out, err = chat([*lines, "Describe this image.", "How many objects do you see?"])
    found = errors(err)
    for (line, message), error in zip(wrong, found, strict=True):
        assert message in error, line
    # The image that was given first is still there for the question.
    assert (code, out) == (0, f"{SHAPES}\nTwo.\n")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_closed_stdin_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert command_line.main(["--chat"]) == 2
    assert errors(capsys.readouterr().err) == [
        "--chat reads its questions from stdin, which is closed"
    ]


def test_the_tab_key_completes_commands_and_paths(tmp_path, monkeypatch):
    for name in ("a cat.png", "a cow.png", "b.png", ".hidden"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert complete_path("a c") == ["a cat.png", "a cow.png"]
    assert complete_path('"a ca') == ['"a cat.png"']
    assert complete_path("~/b") == ["~/b.png"]
    assert complete_path(str(tmp_path) + "/fo") == [str(tmp_path) + "/folder/"]
    assert complete_path("") == ["a cat.png", "a cow.png", "b.png", "folder/"]
    assert complete_path(".h") == [".hidden"]
    assert complete_path("nowhere/") == []


# ------------------------------------------------------------------------------- a terminal


SILENCE = 120  # seconds after which a chat that shows nothing is taken for dead


class Terminal:
    """A chat in a pseudo-terminal: what someone types, and what the screen shows."""

    def __init__(self, *options: object, **variables: str) -> None:
        import pty

        self.fd, theirs = pty.openpty()
        command = [sys.executable, "qwen2vl.py", "--chat", *[str(option) for option in options]]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env={**os.environ, "PROMPT_TOOLKIT_NO_CPR": "1", **variables},
            preexec_fn=own_terminal,
        )
        os.close(theirs)
        self.shown = b""
        self.screen = ""

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def wait_for(self, text: str, after: int = 0) -> int:
        """Wait until the screen shows a text; where it ends. The end of the chat is an error."""
        while (found := self.screen.find(text, after)) < 0:
            shown = b""
            if select.select([self.fd], [], [], SILENCE)[0]:
                with contextlib.suppress(OSError):  # the other end is closed
                    shown = os.read(self.fd, 4096)
            if not shown:
                self.process.kill()
                raise AssertionError(f"{text!r} is not shown:\n{self.screen}")
            self.shown += shown
            self.screen = readable(self.shown.decode(errors="replace"))
        return found + len(text)

    def end(self) -> int:
        """The exit code, once the chat has ended. A chat that does not end is an error."""
        try:
            code = self.process.wait(SILENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        os.close(self.fd)
        return code

    def end_by_ctrl_c(self) -> int:
        """The exit code after Ctrl-C, pressed again if nothing happens.

        Between writing the prompt and waiting for a key, readline does not notice a signal.
        """
        for _ in range(SILENCE):
            self.type("\x03")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(1)
                break
        return self.end()


def readable(shown: str) -> str:
    """What a terminal shows, without the sequences that move its cursor or give it colours."""
    shown = re.sub("\x08\x1b\\[2C", " ", shown)  # a step back and two forward, after the >
    return re.sub("\x1b\\[[0-9;?]*[a-zA-Z]", "", shown)


def own_terminal() -> None:
    """In the new process: the terminal is its own, so that Ctrl-C there is a signal to it."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@needs_terminal
@pytest.mark.parametrize("reader", ["readline", "prompt_toolkit"])
def test_someone_types_with_tab_arrows_and_ctrl_c(reader):
    """Completion, history, and the end by Ctrl-C at the prompt."""
    if importlib.util.find_spec(reader) is None:
        pytest.skip(f"{reader} is not installed")
    # On a terminal that can do nothing, readline reads the lines.
    terminal = Terminal(TERM="xterm" if reader == "prompt_toolkit" else "dumb")
    at = terminal.wait_for("> ")
    terminal.type("/im\t")
    at = terminal.wait_for("/image", at)
    terminal.type("examples/sha\t")
    at = terminal.wait_for("pes.png", at)
    terminal.type("\n")
    at = terminal.wait_for("goes with the next question", at)
    terminal.type("Describe this image.\n")
    at = terminal.wait_for(SHAPES, at)
    terminal.type("\x1b[A\n")  # the arrow up brings the last line back
    at = terminal.wait_for("Describe this image.", at)
    at = terminal.wait_for(SHAPES, at)
    at = terminal.wait_for("> ", at)
    assert terminal.end_by_ctrl_c() == 130
    assert "Traceback" not in terminal.screen


@needs_terminal
@pytest.mark.parametrize("command", ["/quit\n", "/exit\n", "\x04"], ids=["quit", "exit", "ctrl-d"])
def test_the_chat_ends_with_0(command):
    terminal = Terminal()
    terminal.wait_for("> ")
    terminal.type(command)
    assert terminal.end() == 0
    assert "Traceback" not in terminal.screen


def model_without_end(folder: Path) -> Path:
    """The embedded checkpoint, with rows of zeros for its end tokens: no answer ends by itself."""
    shutil.copytree(ROOT / "tiny" / "checkpoint", folder)
    weights = load_file(folder / "model.safetensors")
    config = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    weights["model.embed_tokens.weight"][config["eos_token_id"]] = 0  # the head is tied to it
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@needs_terminal
def test_ctrl_c_in_an_answer_ends_the_answer(tmp_path, amount):
    """At random moments of a long answer: what was said stays, and the chat goes on."""
    rng = random.Random(0)
    folder = model_without_end(tmp_path / "endless")
    terminal = Terminal("--model", folder, "--max-new-tokens", "3000")
    at = terminal.wait_for("> ")
    for _ in range(amount(3, 30)):
        terminal.type("Describe this image.\n")
        at = terminal.wait_for("\n", at)
        time.sleep(rng.uniform(0.05, 0.8))
        terminal.type("\x03")
        at = terminal.wait_for("interrupted: ", at)
        at = terminal.wait_for("> ", at)
        terminal.type("/undo\n")
        at = terminal.wait_for("> ", at)
    terminal.type("/quit\n")
    assert terminal.end() == 0
    assert "Traceback" not in terminal.screen


@needs_terminal
def test_ctrl_c_from_the_start_on_ends_quietly(amount):
    """At random moments of the start, imports included: exit code 130, and a new line on stderr."""
    rng = random.Random(1)
    for trial in range(amount(4, 30)):
        seconds = rng.uniform(0.1, 4.0)
        process = subprocess.Popen(
            [sys.executable, "qwen2vl.py", "--image", "examples/many.png", "--temperature", "40"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=take_interrupts,
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        _, err = process.communicate()
        assert process.returncode in (0, 130), f"trial {trial}, after {seconds:.2f} s: {err}"
        assert "Traceback" not in err and "KeyboardInterrupt" not in err, f"{seconds:.2f} s: {err}"
        if process.returncode == 130:
            assert err.endswith("\n")
