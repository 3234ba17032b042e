"""The command line: one question about images and videos, a chat, or a batch of questions.

The answer goes to stdout while it is generated, and nothing else does: notes, errors and tables
go to stderr. `python qwen2vl.py`, `python -m qwen2vl_app.command_line` and, once installed,
`qwen2vl` are the same.
"""

if __name__ == "__main__":  # Ctrl-C ends it quietly, also while the imports take their time
    from qwen2vl_extras import interrupts

    interrupts.exit_on_ctrl_c()

import argparse
import importlib.metadata
import math
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from processor import BatchFeature, Item, Message, Qwen2VLProcessor, TextStream
from qwen2vl import ATTENTION_IMPLEMENTATIONS, Qwen2VLForConditionalGeneration
from qwen2vl_app.batch import BatchDefaults, BatchRunner
from qwen2vl_app.batch_lines import find_lines
from qwen2vl_app.batch_output import BatchOutput
from qwen2vl_app.boxes import check_output, describe_boxes, draw_boxes, find_boxes
from qwen2vl_app.chat import OUT_OF_MEMORY, Chat
from qwen2vl_app.conversation import Conversation
from qwen2vl_app.json_answer import json_answer
from qwen2vl_app.progress import note_long_reading, reading_bars
from qwen2vl_app.records import to_json_line
from qwen2vl_app.trace import trace_stages
from qwen2vl_extras import followers, interrupts, processes
from qwen2vl_extras.media import load_image
from qwen2vl_extras.sources import check_place, read_all

DISTRIBUTION = "qwen2vl-from-scratch"  # its name in pyproject.toml
HIGH_TEMPERATURE = 1.5

DESCRIPTION = """Ask Qwen2-VL about images and videos.
The answer goes to stdout, everything else to stderr."""
EXAMPLES = """examples:
  python qwen2vl.py --image examples/shapes.png --trace
  python qwen2vl.py --image examples/many.png --prompt "Find the blue ring." --boxes found.png
  python qwen2vl.py --chat
  python qwen2vl.py --image examples/many.png --prompt "Find the blue ring." --json
  python qwen2vl.py --batch examples --prompt "How many objects do you see?" --out answers.jsonl
  python qwen2vl.py --batch questions.jsonl --out answers.jsonl
a line of questions.jsonl: {"id": 7, "image": "a.jpg", "prompt": "What is it?", "max_new_tokens": 20}
  python qwen2vl.py --model Qwen/Qwen2-VL-2B-Instruct --image a.jpg --image b.jpg --prompt "What differs?"
  python qwen2vl.py --model /models/Qwen2-VL-7B-Instruct --video clip.mp4 --fps 1 --prompt "What happens?"
Once installed, `qwen2vl` in place of `python qwen2vl.py` does the same in any folder."""  # noqa: E501
TINY_NOTE = """model: tiny, embedded here; it knows drawn shapes and words, nothing else.
For photos: --model Qwen/Qwen2-VL-2B-Instruct (downloads 4.4 GB), or a folder that holds it."""
DEFAULT_PROMPT = "Describe this image."


def version() -> str:
    """The version of the code that runs.

    In a clone pyproject.toml states it, whether the clone was installed or not; an editable
    install's metadata would stay what it was on the day of the install. A wheel has no
    pyproject.toml, but metadata.
    """
    pyproject = Path(__file__).parent.parent / "pyproject.toml"
    if pyproject.exists():
        lines = rf'^name = "{DISTRIBUTION}"\nversion = "(.+)"$'
        stated = re.search(lines, pyproject.read_text(encoding="utf-8"), re.MULTILINE)
        if stated is not None:  # else it is the file of another project
            return stated[1]
    return importlib.metadata.version(DISTRIBUTION)


# ----------------------------------------------------------------------------------- options


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The options of the command line. Exits with 0 after --help and --version, and with 2 if one
    is wrong.
    """
    parser = argparse.ArgumentParser(
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"{DISTRIBUTION} {version()}")
    add_input_options(parser)
    add_model_options(parser)
    add_answer_options(parser)
    add_output_options(parser)
    add_batch_options(parser)
    add_web_options(parser)
    args = parser.parse_args(argv)
    # In a chat the prompt is the first question, if there is one.
    args.first_question = args.prompt
    if args.prompt is None:
        args.prompt = DEFAULT_PROMPT
    return args


def add_input_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is asked")
    group.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="SOURCE",
        help="path, URL or data: URI, - for stdin; repeatable",
    )
    group.add_argument(
        "--video",
        action="append",
        default=[],
        metavar="SOURCE",
        help="path or URL; repeatable; videos come after the images",
    )
    group.add_argument(
        "--prompt", help=f"default: {DEFAULT_PROMPT}; with --chat the first question of the chat"
    )
    group.add_argument("--system", help="replaces the default system prompt")
    group.add_argument(
        "--chat", action="store_true", help="many turns; /help there lists its commands"
    )
    group.add_argument("--fps", type=float, help="frames a second taken from a video (default: 2)")
    group.add_argument(
        "--min-pixels", type=int, help="smaller images are enlarged to this many pixels"
    )
    group.add_argument(
        "--max-pixels",
        type=int,
        help="larger images are shrunk to this many pixels; 28 x 28 make one token",
    )


def add_model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the model")
    group.add_argument(
        "--model", default="tiny", help="tiny (default), a folder, or a name on the Hub"
    )
    group.add_argument(
        "--base",
        help="where --model is a LoRA adapter: the model it is merged into, named like --model "
        "(default: the name on the Hub that the adapter states)",
    )
    group.add_argument(
        "--device",
        default="auto",
        help="auto (default: CUDA, else MPS, else CPU; for tiny the CPU), cpu, cuda, cuda:1, mps",
    )
    group.add_argument(
        "--dtype", default="auto", help="auto (default: as stored), bfloat16, float16, float32"
    )
    group.add_argument(
        "--attn",
        default="auto",
        choices=("auto", *ATTENTION_IMPLEMENTATIONS),
        help="implementation of attention (default: auto)",
    )
    group.add_argument(
        "--compile", action="store_true", help="compile the decoder: sooner done with long answers"
    )
    group.add_argument(
        "--int8",
        action="store_true",
        help="weights in int8: half the memory of bfloat16, faster, less exact",
    )
    group.add_argument(
        "--int4",
        action="store_true",
        help="the decoder's weights in four bits, those of tokens in int8: less memory still",
    )
    group.add_argument(
        "--official-template",
        action="store_true",
        help="leave aside a chat template that the checkpoint brings",
    )


def add_answer_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the answer")
    group.add_argument(
        "--max-new-tokens", type=int, default=512, help="longest answer (default: %(default)s)"
    )
    group.add_argument(
        "--temperature",
        type=float,
        help="0: always the most probable token; 0.5 to 1: answers vary; above 1.5: nonsense; "
        "default: as generation_config.json says",
    )
    group.add_argument("--top-k", type=int, help="draw from the k most probable tokens only")
    group.add_argument(
        "--top-p",
        type=float,
        help="draw from the most probable tokens that together reach this probability",
    )
    group.add_argument("--seed", type=int, help="the same seed draws the same answer")


def add_output_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what else is shown")
    group.add_argument(
        "--trace", action="store_true", help="a table of each stage's shapes, time and memory"
    )
    group.add_argument(
        "--boxes",
        metavar="OUT.png",
        help="write the image with the boxes of the answer drawn on it; takes one --image",
    )
    group.add_argument(
        "--json",
        action="store_true",
        help="the answer as one JSON object: answer, boxes, tokens, seconds of each stage",
    )


def add_batch_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("many questions")
    group.add_argument(
        "--batch",
        nargs="+",
        metavar="SOURCE",
        help="a file of JSON lines, - for stdin, or folders, globs and names of images, which "
        "all get the --prompt; a line has image, images, video, videos and prompt, or messages, "
        "an id if you like, and settings such as max_new_tokens or max_pixels; answers come as "
        "JSON lines; exit code 1 if some are errors",
    )
    group.add_argument(
        "--out",
        metavar="FILE",
        help="where the answers of --batch go (default: stdout); a run that was broken off goes "
        "on behind the answers that are there",
    )
    group.add_argument(
        "--batch-memory",
        type=float,
        default=2.0,
        metavar="GB",
        help="for the lines that are answered together, beside the weights (default: %(default)s)",
    )


def add_web_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the page")
    group.add_argument(
        "--web",
        action="store_true",
        help="serve a page to ask, draw and see what the model sees; needs the extra web",
    )
    group.add_argument(
        "--host",
        default="127.0.0.1",
        help="0.0.0.0 for a class: all machines of the network (default: this one only)",
    )
    group.add_argument("--port", type=int, default=8000, help="of the page (default: %(default)s)")


# ------------------------------------------------------------------------------------ answer


def answer(
    model: Qwen2VLForConditionalGeneration,
    processor: Qwen2VLProcessor,
    messages: list[Message],
    args: argparse.Namespace,
) -> str:
    """Stream the answer to a conversation to stdout, and return it."""
    inputs = processor.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=True, video_fps=args.fps
    )
    assert isinstance(inputs, BatchFeature)  # no string, since it is tokenized
    tensors: dict[str, Any] = inputs.to(model.device)

    note_long_reading(model, inputs)

    # Nothing is computed yet: each token is, when it is asked for.
    settings: dict[str, Any] = answer_settings(args)
    tokens = model.stream(**tensors, **settings)

    return show_answer(model, tokens, inputs, processor.text_stream(), args)


def answer_in_chat(
    conversation: Conversation, question: list[Item], args: argparse.Namespace
) -> None:
    """Stream the answer to the next question of a conversation to stdout."""
    model = conversation.model
    tokens = conversation.tokens(question, **answer_settings(args))
    note_long_reading(model, conversation.unread)
    show_answer(model, tokens, conversation.unread, conversation.processor.text_stream(), args)


def answer_settings(args: argparse.Namespace) -> dict[str, object]:
    """The options of the command line that `model.stream` takes."""
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "seed", "compile")
    return {name: getattr(args, name) for name in names}


def show_answer(
    model: Qwen2VLForConditionalGeneration,
    tokens: Iterator[Tensor],
    inputs: Mapping[str, Tensor],
    text_stream: TextStream,
    args: argparse.Namespace,
) -> str:
    """Print the tokens of an answer to these inputs, with bars and the table of --trace."""
    with reading_bars(model, inputs):
        if not args.trace:
            return print_tokens(tokens, text_stream)
        # Tracing times the tokens on their way to the printer.
        with trace_stages(model, compiled=args.compile) as trace:
            return print_tokens(trace.steps(tokens), text_stream)


def print_tokens(tokens: Iterator[Tensor], text_stream: TextStream) -> str:
    """Print one row's tokens (1,) as text, each as soon as it is there; returns the whole text."""
    text = ""
    for token in tokens:
        piece = text_stream.push(int(token))
        print(piece, end="", flush=True)
        text += piece
    rest = text_stream.finish()  # of a letter whose bytes are incomplete
    print(rest, flush=True)
    return text + rest


# -------------------------------------------------------------------------------------- main


def main(argv: list[str] | None = None) -> int:
    """Run the command line: returns 0, or 1 if some lines of --batch are errors, or 2 after one
    line on stderr about what was wrong with the input, or 130 after Ctrl-C.

    argv: the arguments; None: those of this process, which is then taken to be ours alone.
    """
    if argv is None and hasattr(signal, "SIGPIPE"):  # Windows has no such signal
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end quietly when `| head` has read enough
    if sys.stderr is None:  # it is closed, and `print` would write to stdout in its place
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, for good
    if sys.stdout is None:
        print("error: stdout, where the answer goes, is closed", file=sys.stderr)
        return 2
    if hasattr(sys.stdout, "reconfigure"):  # not in notebooks
        sys.stdout.reconfigure(errors="replace")  # print ? where the terminal has no such character
    processes.join_command_line()  # under torchrun the first process speaks for all
    args = parse_arguments(argv)
    was_ending = False
    try:
        was_ending = interrupts.raise_on_ctrl_c()
        if processes.is_follower():  # it computes along with the first process
            followers.follow(load_model(args))
            return 0
        check_output_options(args)
        if args.batch is not None:
            return run_batch(args)
        if args.web:
            run_web(args)
            return 0
        run(args)
    except (ValueError, OSError, MemoryError, torch.OutOfMemoryError) as error:
        processes.report(f"error: {str(error) or OUT_OF_MEMORY}", status=2)
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return interrupts.EXIT_CODE
    finally:
        if was_ending:  # while Python ends, nothing catches it
            interrupts.exit_on_ctrl_c()
    return 0


def run(args: argparse.Namespace) -> None:
    """Load the model and answer what the command line asks."""
    # The images and videos are opened later, with the question: but for the one to draw on.
    media = media_items(args)
    image: Image.Image | None = None  # to draw on
    if args.boxes is not None:  # what can't work fails here, before the model is loaded
        check_boxes_options(args)
        image = load_image(media[0]["image"])
        media = [{"type": "image", "image": image}]  # so that it is opened only once
    if args.chat:
        check_places(media)
    print_notes(args)
    start = time.perf_counter()
    model, processor = load_both(args)
    load_seconds = time.perf_counter() - start

    # The conversation: a system prompt, then many turns or one question.
    messages: list[Message] = []
    if args.system is not None:
        messages.append({"role": "system", "content": args.system})
    if args.chat:
        run_chat(Conversation(model, processor, messages), media, args)
        return
    messages.append({"role": "user", "content": [*media, {"type": "text", "text": args.prompt}]})
    if args.json:
        record = json_answer(model, processor, messages, args, answer_settings(args), load_seconds)
        print(to_json_line(record, sys.stdout.encoding or "utf-8"))
        text = str(record["answer"])
    else:
        text = answer(model, processor, messages, args)
    if image is not None:
        save_boxes(text, image, args.boxes)


def load_both(args: argparse.Namespace) -> tuple[Qwen2VLForConditionalGeneration, Qwen2VLProcessor]:
    """The model and its processor."""
    # The processor first: it reads small files only, and fails early if they are wrong.
    processor = Qwen2VLProcessor.from_pretrained(
        args.model,
        min_pixels=args.min_pixels,
        max_pixels=args.max_pixels,
        official_template=args.official_template,
        base=args.base,
    )
    model = load_model(args)
    return model, processor


def run_batch(args: argparse.Namespace) -> int:
    """Answer the lines of --batch: returns 0, or 1 if some of the records are errors."""
    # What can't work fails here, before the model is loaded.
    lines, total = find_lines(args.batch)
    output = BatchOutput(args.out, args.batch)
    lines = output.skip_earlier(lines)
    if output.count == total:
        print(f"{args.out}: all {total} lines are there", file=sys.stderr)
        return 1 if output.errors else 0
    print_notes(args)
    model, processor = load_both(args)

    defaults = BatchDefaults(
        prompt=args.prompt,
        system=args.system,
        fps=args.fps,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
        compile=args.compile,
    )
    runner = BatchRunner(model, processor, defaults, memory=1e9 * args.batch_memory)
    try:
        with tqdm(desc="batch", total=total, initial=output.count, unit="line") as bar:
            for record in runner.records(lines, bar):
                output.write(record)
    finally:
        output.close()
    return 1 if output.errors else 0


def run_web(args: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C."""
    # What can't work fails here, before the model is loaded.
    terminal_options = ("image", "video", "chat", "boxes", "trace", "json", "system", "fps")
    for name in (*terminal_options, "compile"):
        if getattr(args, name):
            raise ValueError(f"--{name} is for the terminal: it does not go with --web")
    if args.first_question is not None:
        raise ValueError("--prompt is for the terminal: on the page of --web visitors ask")
    if not 0 <= args.port <= 65535:
        raise ValueError(f"--port is from 0 to 65535, not {args.port}")
    try:
        from qwen2vl_app.web.serve import TINY_KNOWS, serve  # its libraries come with the extra
    except ModuleNotFoundError as error:
        raise ValueError(
            f'--web needs {error.name}: pip install -e ".[web]" in this folder brings it'
        ) from None
    print_notes(args)
    model, processor = load_both(args)
    # Of a folder visitors see its last name only.
    name = Path(args.model).resolve().name if Path(args.model).is_dir() else args.model
    knows = TINY_KNOWS if args.model == "tiny" else ""
    serve(model, processor, name, args.host, args.port, answer_settings(args), knows)


def check_output_options(args: argparse.Namespace) -> None:
    """ValueError for options that would be ignored beside --batch, --json or without them."""
    if args.batch is None and args.out is not None:
        raise ValueError("--out is where the answers of --batch go: it needs --batch")
    if args.json and args.chat:
        raise ValueError("--json prints one answer: it does not go with --chat")
    if not 0 < args.batch_memory < math.inf:
        raise ValueError(f"--batch-memory is a number of GB above 0, not {args.batch_memory:g}")
    if args.batch is None:
        return
    # --json is what the answers of a batch are anyway.
    for name in ("image", "video", "chat", "boxes", "trace", "web"):
        if getattr(args, name):
            raise ValueError(f"--{name} is for one question: it does not go with --batch")


def load_model(args: argparse.Namespace) -> Qwen2VLForConditionalGeneration:
    """The model of the command line, or this process's part of it."""
    return Qwen2VLForConditionalGeneration.from_pretrained(
        args.model,
        dtype=args.dtype,
        device_map=args.device,
        attn_implementation=args.attn,
        int8=args.int8,
        base=args.base,
        int4=args.int4,
    )


def run_chat(conversation: Conversation, media: list[Item], args: argparse.Namespace) -> None:
    """Take questions from stdin until it ends. What is wrong with an option is said before."""
    if conversation.messages:
        conversation.writer.write(conversation.messages)
    conversation.settings_after([0], answer_settings(args))
    chat = Chat(
        conversation,
        lambda question: answer_in_chat(conversation, question, args),
        media,
        fps=args.fps,
    )
    chat.run(args.first_question)


def check_places(media: list[Item]) -> None:
    """OSError for an image or video of the command line that can't be opened."""
    for item in media:
        kind = item["type"]
        check_place(item[kind], kind)


def media_items(args: argparse.Namespace) -> list[Item]:
    """The images and then the videos of the command line, as items of a message."""
    items = []
    for kind, sources in (("image", args.image), ("video", args.video)):
        for source in sources:
            opened = read_stdin(args, kind) if source == "-" else source
            items.append({"type": kind, kind: opened})
    return items


def read_stdin(args: argparse.Namespace, kind: str) -> bytes:
    """The image or video that is sent to stdin, which gives it once."""
    if sys.stdin is None:
        raise ValueError(f"--{kind} - reads from stdin, which is closed")
    if args.chat:
        raise ValueError(f"--{kind} - reads from stdin, where --chat reads the questions")
    if [*args.image, *args.video].count("-") > 1:
        raise ValueError("-, which is stdin, can be read only once")
    return read_all(sys.stdin.buffer, kind)


def check_boxes_options(args: argparse.Namespace) -> None:
    """ValueError if --boxes can't work with the other options, or its image can't be written."""
    if args.chat:
        raise ValueError("--boxes draws the boxes of one answer: it does not go with --chat")
    if len(args.image) != 1 or args.video:
        raise ValueError(
            "--boxes draws on the image of the question: it takes one --image and no --video, "
            f"not {len(args.image)} and {len(args.video)}"
        )
    check_output(args.boxes, args.image[0])


def print_notes(args: argparse.Namespace) -> None:
    """What someone may want to know before the answer, on stderr."""
    if args.model == "tiny":
        print(TINY_NOTE, file=sys.stderr)
    # NaN and infinity are refused later.
    if args.temperature is not None and HIGH_TEMPERATURE < args.temperature < math.inf:
        print(
            f"note: temperature {args.temperature:g} flattens the probabilities of tokens: "
            "expect nonsense (0.5 to 1 is usual)",
            file=sys.stderr,
        )


def save_boxes(text: str, image: Image.Image, out: str) -> None:
    """Draw the boxes of an answer onto its image, and say on stderr what was drawn."""
    boxes = find_boxes(text)
    if not boxes:
        print(f"no box in the answer: {out} was not written", file=sys.stderr)
        return
    draw_boxes(image, boxes).save(out)
    print(f"{out}: {describe_boxes(boxes)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
