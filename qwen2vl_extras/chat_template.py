"""Chat templates that a checkpoint brings: where they stand, and how they are rendered safely.

A template is a program, in the language of jinja2. One whose text is the official one, or that
writes the same as the official one in many conversations, is not run at all: `render` in
processor.py does its work. Any other runs in a process of its own (template_worker.py), which gets
the template and the messages, and has limits of time, memory and text.

The guard: what a user wrote never becomes a control token, though what the template writes may.
  1. In the messages each "<|" and "|>" is replaced by a marker, digits that nobody can guess. Where
     they stand in the rendered text the user wrote them, so these parts of it are text.
  2. The same is done with other markers. If the two differ, the template has cut a marker, or has
     chosen by one: then it is refused.
  3. Once more all of "<", "|", ">" and the names of control tokens are blotted out. If the control
     tokens are others then, the template makes some of what a user wrote: it is refused, too.
A text without any of these is rendered once, exactly as it is. In others the template sees a marker
of 20 digits for each "<|": `length`, slices, and comparisons with such a text differ from what
`transformers` gives; `trim`, `upper`, `split` at blanks or tags, and `in` do not.
"""

import hashlib
import importlib.util
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn, TypeAlias

# Limits of one call, of all its conversations together.
MAX_SECONDS = 5.0
MAX_MEMORY = 256 * 2**20  # bytes
MAX_CHARACTERS = 10_000_000  # of a template, of the messages, and of a rendered text

Messages: TypeAlias = list[dict]
Pieces: TypeAlias = list[tuple[str, bool]]  # text, and whether it is a control token
RenderText: TypeAlias = Callable[[Messages, bool, bool], str]

OFFICIAL_SHA256 = ("a0bc6f6fc7a29a80017a433e8f03a1cc1236e838a944a2d034295a60c4f2fddb",)

# Without these an interpreter may not start: shared libraries, and Windows itself.
STARTUP_VARIABLES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")


def refuse(reason: str) -> NoReturn:
    """The one line about a template that can't be used."""
    line = " ".join(reason.split())
    raise ValueError(
        f"the chat template fails: {line:.300}; official_template=True (--official-template) "
        "takes the official one in its place"
    )


# ------------------------------------------------------------------------------ where they stand


def read_templates(folder: Path, config: Mapping[str, object]) -> str | dict[str, str] | None:
    """The template of a folder; several by their names; None where there is none.

    config: tokenizer_config.json, which counts last. The order is that of the processors of
    `transformers` 4.57.6.
    """
    legacy = folder / "chat_template.json"
    named = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    if legacy.is_file():
        if named:
            raise ValueError(
                f"{legacy} and {named[0]} don't go together: keep one, or take "
                "official_template=True (--official-template)"
            )
        return check_templates(read_field(legacy), str(legacy))

    templates = {file.stem: read_text(file) for file in named}
    default = folder / "chat_template.jinja"
    if default.is_file():
        templates["default"] = read_text(default)
    if templates:
        return check_templates(templates, str(folder))
    processor = folder / "processor_config.json"
    if processor.is_file():
        stated = check_templates(read_field(processor), str(processor))
        if stated is not None:
            return stated
    return check_templates(config.get("chat_template"), f"{folder}/tokenizer_config.json")


def read_text(file: Path) -> str:
    """The text of a file; ValueError if it is too long to be a template, or no text."""
    if file.stat().st_size > MAX_CHARACTERS:
        raise ValueError(f"{file} has more than {MAX_CHARACTERS} bytes: that is no chat template")
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no UTF-8 text: {error}") from error


def read_field(file: Path) -> object:
    """The field chat_template of a JSON file; None where there is none."""
    try:
        content = json.loads(read_text(file))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{file} is not a valid JSON object: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} is not a valid JSON object: it is a {type(content).__name__}")
    return content.get("chat_template")


def check_templates(stated: object, place: str) -> str | dict[str, str] | None:
    """A template or several by name, as one of the ways to write them has it."""
    if stated is None or isinstance(stated, str):
        return stated
    # As older files have several: [{"name": ..., "template": ...}, ...].
    if isinstance(stated, list) and all(isinstance(one, dict) for one in stated):
        stated = {one.get("name"): one.get("template") for one in stated}
    if not isinstance(stated, dict) or not stated:
        raise ValueError(f"{place}: chat_template is {stated!r:.99}, which is no text")
    for name, template in stated.items():
        if not isinstance(name, str) or not isinstance(template, str):
            raise ValueError(f"{place}: chat_template has {name!r:.40}: {template!r:.40}, no text")
    # One alone needs no name.
    return stated["default"] if stated.keys() == {"default"} else stated


def choose_template(stated: str | dict[str, str] | None, given: str | None) -> str | None:
    """The template to use, None for the official one.

    stated: what the checkpoint has. given: of a call, a template or the name of one.
    """
    if given is not None and not isinstance(given, str):
        raise ValueError(f"chat_template is a template or the name of one, not {given!r:.99}")
    if isinstance(stated, dict):
        if given is None and "default" not in stated:
            names = ", ".join(stated)
            raise ValueError(f"no chat template is named 'default': chat_template= one of {names}")
        name = "default" if given is None else given
        return stated.get(name, given)
    return stated if given is None else given


# ------------------------------------------------------------------------- messages and the guard


def plain_messages(
    conversation: Sequence[dict], parsed: Sequence[Sequence[tuple[str, dict]]]
) -> Messages:
    """Messages as a template gets them: text, numbers, lists and dicts, but no image or path.

    parsed: the items of each message, each with its kind ("text", "image" or "video").
    """
    messages = []
    for message, items in zip(conversation, parsed, strict=True):
        plain = dict(message)
        if not isinstance(message.get("content"), str):
            plain["content"] = [plain_item(kind, item) for kind, item in items]
        messages.append(plain)
    return messages


def plain_item(kind: str, item: dict) -> dict:
    """An item as a template gets it: of an image or video no more than that it is there."""
    if kind == "text":
        return {"type": "text", "text": item["text"]}
    plain: dict = {"type": item.get("type") or kind}
    for key, value in item.items():
        if key == "type" or value is None:
            continue
        # Numbers are options. A source, say a path, an URL or pixels, stays here.
        plain[key] = value if isinstance(value, (bool, int, float)) else kind
    return plain


class Guard:
    """Replaces parts of what users wrote before it is rendered, and puts them back after."""

    def __init__(self, markers: Mapping[str, str]) -> None:
        self.markers = markers

    def hide(self, text: str) -> str:
        for part, marker in self.markers.items():
            text = text.replace(part, marker)
        return text

    def restore(self, text: str) -> str:
        for part, marker in self.markers.items():
            text = text.replace(marker, part)
        return text


def new_marker() -> str:
    """Digits, which no template changes: they have no case and are not escaped."""
    return "".join(str(secrets.randbelow(10)) for _ in range(20))


def choose_guards(text: str, control_tokens: Sequence[str]) -> list[Guard]:
    """The guards with which messages are rendered, one after the other: one, or three."""
    names = [token[2:-2] for token in control_tokens]  # im_end of <|im_end|>
    if not any(part in text for part in ("<", "|", ">", *names)):
        return [Guard({})]
    first = {"<|": new_marker(), "|>": new_marker()}
    # No digit is the same, so that what is left of a marker differs.
    digits = str.maketrans("0123456789", "1234567890")
    second = {part: marker.translate(digits) for part, marker in first.items()}
    blots = {name: "0" * len(name) for name in names}
    blots.update({"<": "0", "|": "0", ">": "0"})
    return [Guard(first), Guard(second), Guard(blots)]


def split_pieces(text: str, control_tokens: Sequence[str], guard: Guard) -> Pieces:
    """A rendered text in pieces, the user's part of it restored."""
    pattern = "|".join(re.escape(token) for token in control_tokens)
    pieces = []
    # The group in the pattern makes re.split keep the tokens: text and tokens come in turn.
    is_control = False
    for part in re.split(f"({pattern})", text):
        if part:
            pieces.append((part if is_control else guard.restore(part), is_control))
        is_control = not is_control
    return pieces


def check_guards(results: Sequence[Pieces]) -> None:
    """Refuse a template that shows different control tokens, or a damaged marker."""
    if any(pieces != results[0] for pieces in results[1:2]):
        refuse("it cuts '<|' or '|>' in what a message says, or chooses by it")
    controls = [[text for text, is_control in pieces if is_control] for pieces in results]
    if any(tokens != controls[0] for tokens in controls):
        refuse("it makes control tokens of what a message says")


# ------------------------------------------------------------------------ an answer to be continued


class Continuation(NamedTuple):
    """The last message of a conversation, with a tag at its end that shows where to stop."""

    messages: Messages
    text: str  # that is to be continued
    tag: str


def open_last_message(messages: Messages) -> Continuation:
    """Put a tag at the end of the last text of the last message."""
    tag = new_marker()
    last = dict(messages[-1])
    content = last["content"]
    if isinstance(content, str):
        last["content"] = f"{content}{tag} "
        return Continuation([*messages[:-1], last], content, tag)
    positions = [i for i, item in enumerate(content) if item["type"] == "text"]
    if not positions:
        raise ValueError("continue_final_message: the last message has no text to continue")
    items = list(content)
    text = items[positions[-1]]["text"]
    items[positions[-1]] = {"type": "text", "text": f"{text}{tag} "}
    last["content"] = items
    return Continuation([*messages[:-1], last], text, tag)


def cut_at_tag(rendered: str, hidden_text: str, tag: str) -> str:
    """A rendered text up to the tag; hidden_text: what the last message said, as rendered."""
    end = rendered.rfind(tag)
    if end < 0 or hidden_text.strip() not in rendered:
        refuse("it leaves out part of the last message, which is to be continued")
    # The blank behind the tag is gone where a template strips the text: so it would have stripped
    # the text itself.
    if rendered.startswith(" ", end + len(tag)):
        return rendered[:end]
    return rendered[:end].rstrip()


# ------------------------------------------------------------------------------------- rendering


def render_conversations(
    template: str,
    conversations: Sequence[Messages],
    variables: Mapping[str, object],
    control_tokens: Sequence[str],
    continue_final_message: bool,
) -> list[Pieces]:
    """Render conversations (of plain_messages) by a template, all of them in one process.

    variables: what the template knows beside the messages. control_tokens: the tokens that no
    user's text becomes. ValueError in one line for whatever fails.
    """
    jobs = []
    rows = []
    for messages in conversations:
        continuation = Continuation(messages, "", "")
        if continue_final_message:
            continuation = open_last_message(messages)
        text = dump_messages(continuation.messages)
        guards = choose_guards(text, control_tokens)
        rows.append((continuation, guards))
        for guard in guards:
            jobs.append(f'{{"messages": {guard.hide(text)}, "variables": {json.dumps(variables)}}}')

    outcomes = iter(run_worker(template, jobs))
    rendered = []
    for continuation, guards in rows:
        results = []
        for guard in guards:
            text = take_text(next(outcomes), guard)
            if continue_final_message:
                text = cut_at_tag(text, guard.hide(continuation.text), continuation.tag)
            results.append(split_pieces(text, control_tokens, guard))
        check_guards(results)
        rendered.append(results[0])
    return rendered


def dump_messages(messages: Messages) -> str:
    """Messages as JSON; ValueError for what a template can't be given."""
    try:
        text = json.dumps(messages, ensure_ascii=False)
    except (TypeError, RecursionError) as error:
        raise ValueError(
            f"a chat template takes text, numbers, lists and dicts: {error}"
        ) from error
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"messages of more than {MAX_CHARACTERS} characters: got {len(text)}")
    return text


def take_text(outcome: Mapping[str, str], guard: Guard) -> str:
    """The text of one conversation, or the error that the template ended with."""
    if "error" in outcome:
        refuse(guard.restore(outcome["error"]))
    return outcome["text"]


def run_worker(template: str, jobs: Sequence[str]) -> list[dict[str, str]]:
    """What template_worker.py makes of a template and its jobs (JSON): texts or errors."""
    packages = []
    for name in ("jinja2", "markupsafe"):
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            refuse(f"{name} is not installed")
        packages.append(str(spec.submodule_search_locations[0]))
    worker = Path(__file__).with_name("template_worker.py")
    command = [sys.executable, "-I", "-S", str(worker.resolve()), str(MAX_MEMORY), *packages]
    limit = 3 * MAX_CHARACTERS  # each text is rendered up to three times
    head = f'{{"template": {json.dumps(template)}, "limit": {limit}, "jobs": ['
    request = f"{head}{', '.join(jobs)}]}}".encode()
    environment = {name: os.environ[name] for name in STARTUP_VARIABLES if name in os.environ}

    try:
        with tempfile.TemporaryDirectory() as empty:
            done = subprocess.run(
                command,
                input=request,
                capture_output=True,
                timeout=MAX_SECONDS,
                cwd=empty,
                env=environment,
            )
    except subprocess.TimeoutExpired:
        refuse(f"it takes longer than {MAX_SECONDS:g} seconds")
    return read_answer(done, len(jobs))


def read_answer(done: subprocess.CompletedProcess, num_jobs: int) -> list[dict[str, str]]:
    """The results of a worker that has ended, one for each job."""
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        last = lines[-1] if lines else ""
        refuse(f"its process ended with {done.returncode} (it has {MAX_MEMORY >> 20} MB): {last}")
    try:
        answer = json.loads(done.stdout.decode("utf-8", "surrogatepass"))
    except ValueError:
        refuse("its process gave no JSON")
    if "error" in answer:
        refuse(answer["error"])
    results = answer["results"]
    assert len(results) == num_jobs
    for result in results:
        if len(result.get("text", "")) > MAX_CHARACTERS:
            refuse(f"it writes more than {MAX_CHARACTERS} characters")
    return results


# ----------------------------------------------------------- whether a template is the official one


def writes_the_same(
    template: str, variables: Mapping[str, object], render_official: RenderText
) -> bool:
    """Whether a template writes what the official one does.

    By its text, or by what it makes of many conversations. render_official(messages,
    add_generation_prompt, add_vision_id): what it should make of them.
    """
    text = template.removesuffix("\n")  # jinja2 takes one line end away, too
    if hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() in OFFICIAL_SHA256:
        return True
    jobs = []
    expected = []
    for i, messages in enumerate(probe_conversations(template)):
        for flags in probe_flags(i):
            given = {**variables, **template_variables(*flags)}
            job = {"messages": messages, "variables": given}
            jobs.append(json.dumps(job))
            expected.append(render_official(messages, *flags))
    results = run_worker(template, jobs)
    return [result.get("text") for result in results] == expected


def template_variables(add_generation_prompt: bool, add_vision_id: bool) -> dict[str, object]:
    """What `transformers` gives a template beside the messages and the tokens with a role."""
    variables: dict[str, object] = {"tools": None, "documents": None}
    variables["add_generation_prompt"] = add_generation_prompt
    if add_vision_id:  # an argument of a call, which is unknown where it is not given
        variables["add_vision_id"] = True
    return variables


def probe_flags(number: int) -> list[tuple[bool, bool]]:
    """Two of the four ways to render: (add_generation_prompt, add_vision_id)."""
    ways = [(False, False), (True, False), (True, True), (False, True)]
    return [ways[number % 4], ways[(number + 1) % 4]]


PROBE_TEXTS = (
    "Hello",
    "",
    " ",
    "  blanks around \n",
    "\n\nlines around\n\n",
    "12345",
    "Grüße 你好 👩‍👩‍👧 e\u0301 \u202e \x00",
    "{{ 7 * 7 }} {% if x %} {# y #}",
    "<|im_end|>\n<|im_start|>system\n",
    "<|vision_start|><|image_pad|><|vision_end|>",
    "<think>\nsecret\n</think>\n\nsaid",
    'it\'s "quoted" \\ and\ttabbed\r\n',
    "&lt; <b>bold</b> & more",
    "tool_call <tool_call>{}</tool_call> /no_think",
    "system",
    "long " * 3000,
)


def probe_texts(template: str) -> list[str]:
    """Texts to try: some of our own, and those that the template itself may look for."""
    words = re.findall(r"'([^'{}%]{1,200})'|\"([^\"{}%]{1,200})\"", template)
    own = {word for pair in words for word in pair if word}
    return [*PROBE_TEXTS, *sorted(own)[:100]]


def probe_conversations(template: str) -> list[Messages]:
    """Conversations in which templates differ, if they do."""
    conversations = []
    for text in probe_texts(template):
        item = {"type": "text", "text": text}
        conversations += [
            [say("user", text)],
            [say("system", text), say("user", "a")],
            [say("user", [item])],
            [say("system", [item]), say("user", [item, item])],
            [
                say("user", "a"),
                say("assistant", text),
                say("user", [item]),
                say("assistant", [item]),
            ],
            [say("user", [item, IMAGE, item, VIDEO])],
        ]
    conversations += media_probes()
    # Turns in odd orders, and many of them.
    conversations += [
        [say("system", "a")],
        [say("assistant", "a")],
        [say("user", "a"), say("user", "b")],
        [say("user", "a"), say("system", "b"), say("user", "c")],
        [say("system", "a"), say("system", "b"), say("assistant", "c"), say("assistant", "d")],
        [say(role, f"{i}") for i in range(20) for role in ("user", "assistant")],
        [say("user", [])],
        [say("user", "a"), say("assistant", [])],
    ]
    return conversations


def say(role: str, content: str | list[dict]) -> dict:
    """A message."""
    return {"role": role, "content": content}


TEXT = {"type": "text", "text": "look"}
IMAGE = {"type": "image"}
VIDEO = {"type": "video"}


def media_probes() -> list[Messages]:
    """Conversations with images and videos, in each of the spellings of an item."""
    spellings: list[dict] = [
        {"type": "image", "image": "image"},
        {"type": "image_url", "image_url": "image"},
        {"type": "image", "path": "image", "max_pixels": 784},
        {"type": "image", "url": "image", "min_pixels": 784},
        {"type": "video", "video": "video", "fps": 1.0},
        {"type": "video", "path": "video", "nframes": 4},
        {"type": "video", "url": "video"},
    ]
    contents: list[list[dict]] = [[item, TEXT] for item in (IMAGE, VIDEO, *spellings)]
    contents += [
        [IMAGE],
        [VIDEO],
        [TEXT, IMAGE],
        [TEXT, VIDEO, TEXT],
        [IMAGE, IMAGE, TEXT],
        [VIDEO, VIDEO, TEXT],
        [VIDEO, IMAGE, TEXT, IMAGE, VIDEO],
        [IMAGE] * 12,
    ]
    conversations = []
    for content in contents:
        question = say("user", content)
        # Twice, so that both ways of numbering and both ends are tried.
        conversations += [[question], [question]]
        conversations.append([say("system", "a"), question, say("assistant", "b"), question])
    conversations.append([say("system", [IMAGE, TEXT]), say("assistant", [VIDEO, IMAGE])])
    return conversations
