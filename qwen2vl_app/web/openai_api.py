"""The interface that many clients speak: /v1/models and /v1/chat/completions.

    from openai import OpenAI
    client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")

Images come as data: URIs; no address is fetched. A setting acts, or is refused by its name.
"""

import contextlib
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass

import anyio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from processor import Item, Message, Qwen2VLProcessor
from qwen2vl import Qwen2VLForConditionalGeneration
from qwen2vl_app.conversation import ContextFull, Conversation
from qwen2vl_app.web.limits import MAX_CHAT_BYTES, MAX_IMAGE_BYTES, MAX_MEDIA, Refused
from qwen2vl_app.web.requests import Fields, flag_of, integer_of, number_of, read_json, text_of
from qwen2vl_app.web.uploads import check_upload
from qwen2vl_app.web.workers import Event, Job, Workers
from qwen2vl_extras.errors import check_options, shorten
from qwen2vl_extras.sources import data_of_uri

DEFAULT_MAX_TOKENS = 256
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
KNOWN = (
    "model",
    "messages",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "seed",
    "stop",
    "user",  # the name of an end user, which changes no answer
)
# Settings that can't be had, each with the value that changes nothing.
NEUTRAL: dict[str, list[object]] = {
    "n": [1],
    "frequency_penalty": [0],
    "presence_penalty": [0],
    "logprobs": [False],
    "store": [False],
    "response_format": [{"type": "text"}],
    "modalities": [["text"]],
}
MAX_STOPS = 4


@dataclass
class Completion:
    """A request to answer."""

    messages: list[Message]
    settings: dict[str, object]
    stops: list[str]
    is_streamed: bool
    has_usage: bool  # a streamed answer ends with the count of its tokens


class OpenAIInterface:
    """The routes below /v1."""

    def __init__(
        self,
        model: Qwen2VLForConditionalGeneration,
        processor: Qwen2VLProcessor,
        name: str,
        workers: Workers,
    ) -> None:
        self.model = model
        self.processor = processor
        self.name = name
        self.workers = workers
        self.created = int(time.time())
        self.decoders = anyio.CapacityLimiter(2)

    def facts(self) -> dict[str, object]:
        return {"id": self.name, "object": "model", "created": self.created, "owned_by": "local"}

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self.facts()]})

    async def model_facts(self, request: Request) -> Response:
        self.check_model(request.path_params["name"])
        return JSONResponse(self.facts())

    def check_model(self, name: object) -> None:
        if name != self.name:
            raise Refused(f"there is no model {shorten(name)} here, only {self.name!r}", 404)

    async def complete(self, request: Request) -> Response:
        """Answer a conversation, whole or as a stream of server-sent events."""
        fields = await read_json(request, MAX_CHAT_BYTES)
        completion = await self.read_completion(fields)
        job = self.workers.submit(lambda job: self.answer(completion, job))
        events = job.read()
        # What is wrong with the conversation is found before its first token.
        first = await next_event(events)
        if "error" in first:
            raise Refused(str(first["error"]), 400)
        head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": self.name,
        }
        if completion.is_streamed:
            lines = self.event_lines(completion, first, events, head)
            return StreamingResponse(lines, media_type="text/event-stream")
        text = ""
        last = first
        while "usage" not in last:
            if "error" in last:
                raise Refused(str(last["error"]), 500)
            text += str(last.get("text", ""))
            if await request.is_disconnected():
                job.cancel()
            last = await next_event(events)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None,
            "finish_reason": last["finish_reason"],
        }
        whole = {"object": "chat.completion", "choices": [choice], "usage": last["usage"]}
        return JSONResponse({**head, **whole})

    async def event_lines(
        self,
        completion: Completion,
        first: Event,
        events: AsyncGenerator[Event, None],
        head: dict[str, object],
    ) -> AsyncIterator[str]:
        """The answer as server-sent events, the last of which says [DONE]."""
        async with contextlib.aclosing(events):  # a client that hangs up ends it at once
            head = {**head, "object": "chat.completion.chunk"}
            if completion.has_usage:
                head["usage"] = None
            yield event_line(head, {"role": "assistant", "content": ""}, None)
            event = first
            while "usage" not in event:
                if "error" in event:
                    yield f"data: {json.dumps({'error': {'message': event['error']}})}\n\n"
                    return
                if event.get("text"):
                    yield event_line(head, {"content": event["text"]}, None)
                event = await next_event(events)
            yield event_line(head, {}, event["finish_reason"])
            if completion.has_usage:
                yield f"data: {json.dumps({**head, 'choices': [], 'usage': event['usage']})}\n\n"
            yield "data: [DONE]\n\n"

    # -------------------------------------------------------------------------------- in a thread

    def answer(self, completion: Completion, job: Job) -> None:
        """Compute an answer: its text in pieces, then how it ended and what it cost."""
        *before, question = completion.messages
        conversation = Conversation(self.model, self.processor, before)
        try:
            tokens = conversation.tokens(question, **completion.settings)
        except ContextFull as error:
            job.send({"error": f"{error} (context_length_exceeded)"})
            return
        stream = self.processor.text_stream()
        cutter = StopCutter(completion.stops)
        count = 0
        reason = "length"
        for token in tokens:
            count += 1
            job.send({"text": cutter.push(stream.push(int(token)))})
            if int(token) in conversation.end_tokens or cutter.is_stopped:
                reason = "stop"
            if cutter.is_stopped or job.is_cancelled:
                break
        job.send({"text": cutter.push(stream.finish()) + cutter.finish()})
        prompt_tokens = len(conversation.keys) - count
        usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": count,
            "total_tokens": prompt_tokens + count,
        }
        job.send({"finish_reason": reason, "usage": usage})

    # ------------------------------------------------------------------------------ what is asked

    async def read_completion(self, fields: Fields) -> Completion:
        """The fields of a request by type and range; Refused for the first that is wrong."""
        given = {name: value for name, value in fields.items() if value is not None}
        try:
            check_options(given, KNOWN, NEUTRAL, "/v1/chat/completions")
        except ValueError as error:
            raise Refused(str(error)) from None
        self.check_model(given.get("model"))
        longest = integer_of(given, "max_completion_tokens", 1, 10**6)
        if longest is None:
            longest = integer_of(given, "max_tokens", 1, 10**6)
        settings: dict[str, object] = {"max_new_tokens": longest or DEFAULT_MAX_TOKENS}
        for name, value in (
            ("temperature", number_of(given, "temperature", 0, 2)),
            ("top_p", number_of(given, "top_p", 0, 1)),
            ("seed", integer_of(given, "seed", 0, 2**63 - 1)),
        ):
            if value is not None:
                settings[name] = value
        if settings.get("top_p") == 0:  # of that client's range; here it is above 0
            settings["top_p"] = 1e-6
        options = given.get("stream_options")
        has_usage = isinstance(options, Mapping) and options.get("include_usage") is True
        return Completion(
            messages=await self.read_messages(given.get("messages")),
            settings=settings,
            stops=read_stops(given.get("stop")),
            is_streamed=flag_of(given, "stream"),
            has_usage=has_usage,
        )

    async def read_messages(self, messages: object) -> list[Message]:
        """Messages as this project takes them."""
        if not isinstance(messages, list) or not messages:
            raise Refused("messages is a list of at least one message")
        found: list[Message] = []
        num_images = 0
        for i, message in enumerate(messages):
            where = f"messages[{i}]"
            if not isinstance(message, dict) or message.get("role") not in ROLES:
                raise Refused(f"{where}.role is one of {', '.join(ROLES)}")
            content = message.get("content")
            if isinstance(content, list):
                items = [await self.read_part(part, where) for part in content]
                num_images += sum(item["type"] == "image" for item in items)
                found.append({"role": ROLES[message["role"]], "content": items})
            elif isinstance(content, str):
                found.append({"role": ROLES[message["role"]], "content": content})
            else:
                raise Refused(f"{where}.content is a text or a list of parts")
        if num_images > MAX_MEDIA:
            raise Refused(f"{num_images} images, at most {MAX_MEDIA} are taken")
        if found[-1]["role"] != "user":
            raise Refused("the last message is one of the role user")
        return found

    async def read_part(self, part: object, where: str) -> Item:
        """One part of a message's content: a text or an image."""
        if isinstance(part, dict) and part.get("type") == "text":
            return {"type": "text", "text": text_of(part, "text", 10**6)}
        if not isinstance(part, dict) or part.get("type") != "image_url":
            raise Refused(f"{where}.content: a part has the type text or image_url")
        place = part.get("image_url")
        url = place.get("url") if isinstance(place, dict) else place
        if not isinstance(url, str) or not url[:5].lower() == "data:":
            raise Refused(f"{where}.content: an image is a data: URI, no address is fetched here")
        try:
            content = data_of_uri(url, MAX_IMAGE_BYTES)
        except (ValueError, OSError) as error:
            raise Refused(f"{where}.content: {error}") from None
        await anyio.to_thread.run_sync(check_upload, "image", content, limiter=self.decoders)
        return {"type": "image", "image": content}


class StopCutter:
    """Ends a text before the first of some words, also where it comes in pieces."""

    def __init__(self, stops: list[str]) -> None:
        self.stops = stops
        self.held = ""  # what may be the beginning of one of them
        self.is_stopped = False

    def push(self, text: str) -> str:
        """The text that can be passed on now that this has come."""
        if self.is_stopped:
            return ""
        self.held += text
        found = [self.held.index(stop) for stop in self.stops if stop in self.held]
        if found:
            passed, self.held = self.held[: min(found)], ""
            self.is_stopped = True
            return passed
        # Of the end as much is kept back as may begin a word.
        keep = max((common_end(self.held, stop) for stop in self.stops), default=0)
        passed = self.held[: len(self.held) - keep]
        self.held = self.held[len(self.held) - keep :]
        return passed

    def finish(self) -> str:
        """What was kept back, when no more text comes."""
        passed, self.held = self.held, ""
        return passed


def common_end(text: str, word: str) -> int:
    """How many of the last letters of a text are the first ones of a word."""
    for length in range(min(len(text), len(word) - 1), 0, -1):
        if text.endswith(word[:length]):
            return length
    return 0


def read_stops(value: object) -> list[str]:
    """The field `stop`: a text or a few."""
    stops = [value] if isinstance(value, str) else value
    if stops is None:
        return []
    are_texts = isinstance(stops, list) and all(isinstance(one, str) and one for one in stops)
    if not isinstance(stops, list) or not are_texts or len(stops) > MAX_STOPS:
        raise Refused(f"stop is a text or a list of at most {MAX_STOPS}")
    return stops


async def next_event(events: AsyncIterator[Event]) -> Event:
    """The next event of a job that is no place in the queue."""
    async for event in events:
        if "place" not in event:
            return event
    return {"error": "the answer was broken off"}


def event_line(head: dict[str, object], delta: dict[str, object], reason: object) -> str:
    """A piece of a streamed answer."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
    return f"data: {json.dumps({**head, 'choices': [choice]})}\n\n"


def openai_error(error: Refused) -> Response:
    """An error in the form that these clients read."""
    code: str | None = None
    if error.status == 404:
        code = "model_not_found"
    elif "context_length_exceeded" in str(error):
        code = "context_length_exceeded"
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    content = {"message": str(error), "type": kind, "param": None, "code": code}
    return JSONResponse({"error": content}, error.status)
