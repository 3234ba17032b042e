"""A chat on the command line: questions from stdin, one a line, answers to stdout."""

import sys
from collections.abc import Callable

from processor import Item, Message

COMMANDS = "/image PATH, /video PATH, /reset, /quit"


def chat(
    answer_to: Callable[[list[Message]], str], messages: list[Message], media: list[Item]
) -> None:
    """Take turns until stdin ends or /quit; an error costs one turn.

    answer_to: prints and returns the answer to a conversation. messages: how each conversation
    begins: with a system prompt, or empty. media: the images and videos of the first question.
    """
    # Copies: both grow from here on, and /reset returns to `messages`.
    conversation = list(messages)
    attached = list(media)  # goes with the next question
    print(COMMANDS, file=sys.stderr)
    while True:
        # The prompt goes to stderr: on stdout there are answers only.
        print("> ", end="", file=sys.stderr, flush=True)
        try:
            line = input().strip()
            command, _, argument = line.partition(" ")
            if command == "/quit":
                return
            if command in ("/image", "/video"):
                attached.append({"type": command[1:], "path": argument.strip()})
            elif command == "/reset":
                conversation = list(messages)
                attached = []
            elif line:
                content = [*attached, {"type": "text", "text": line}]
                attached = []  # also if answering fails: a broken file costs one question only
                question = {"role": "user", "content": content}
                answer = answer_to([*conversation, question])
                # Only what was answered is remembered.
                conversation.append(question)
                conversation.append({"role": "assistant", "content": answer})
        except EOFError:
            return
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
