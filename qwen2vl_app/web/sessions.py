"""A session for each visitor: a conversation of their own, in memory and nowhere else."""

import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from processor import Item, Qwen2VLProcessor
from qwen2vl import Qwen2VLForConditionalGeneration
from qwen2vl_app.conversation import Conversation
from qwen2vl_app.web.limits import (
    MAX_MEDIA,
    MAX_SESSION_BYTES,
    MAX_SESSIONS,
    MAX_TOTAL_BYTES,
    Refused,
)
from qwen2vl_app.web.uploads import Upload
from qwen2vl_app.web.workers import Job


@dataclass
class Question:
    """What the page sends to ask: a text, images by their ids, and settings."""

    text: str
    uploads: list[Upload]  # new ones: in a conversation that goes on there are none
    is_new: bool  # begin anew
    is_retry: bool  # answer the last question once more: its images stay, unless others are named
    max_pixels: int | None
    settings: dict[str, object]  # of `model.stream`


class Session:
    """One visitor: uploads, a conversation, and the job that works on it.

    job: the last one. A conversation is touched by one job at a time.
    """

    def __init__(self, model: Qwen2VLForConditionalGeneration, processor: Qwen2VLProcessor) -> None:
        self.id = secrets.token_urlsafe(16)  # nobody can guess another visitor's
        self.conversation = Conversation(model, processor)
        self.uploads: dict[str, Upload] = {}
        self.length_before = 0  # messages, before the last question
        self.last_uploads: list[Upload] = []  # of the last question
        self.job: Job | None = None
        self.last_used = time.monotonic()

    @property
    def is_busy(self) -> bool:
        return self.job is not None and not self.job.is_done

    def count_bytes(self) -> int:
        """About how much memory this visitor takes: files, cache, and features of images."""
        total = sum(len(upload.content) for upload in self.uploads.values())
        cache = self.conversation.cache
        total += cache.keys.nbytes + cache.values.nbytes
        for opened in self.conversation.writer.opened:
            for tensor in (opened.medium.pixels, opened.medium.features):
                total += 0 if tensor is None else tensor.nbytes
        return total

    # --------------------------------------------------------------------------------- uploads

    def add(self, upload: Upload) -> str:
        """Keep an upload; its id. Those that no question names any more make room for it."""
        key = secrets.token_urlsafe(8)
        self.uploads[key] = upload
        while len(self.uploads) > 2 * MAX_MEDIA or self.upload_bytes() > MAX_SESSION_BYTES:
            oldest = next(iter(self.uploads))
            del self.uploads[oldest]
        return key

    def upload_bytes(self) -> int:
        return sum(len(upload.content) for upload in self.uploads.values())

    def find(self, keys: list[str]) -> list[Upload]:
        """The uploads of these ids; Refused if one is not there (any more)."""
        if len(keys) > MAX_MEDIA:
            raise Refused(f"{len(keys)} images and clips, at most {MAX_MEDIA} are taken")
        missing = [key for key in keys if key not in self.uploads]
        if missing:
            raise Refused("a picture is not here any more: add it again", 410)
        return [self.uploads[key] for key in keys]

    # ------------------------------------------------------------------------------- questions

    def tokens(self, question: Question) -> Iterator[Tensor]:
        """The tokens of the answer to a question. Called in a thread."""
        conversation = self.conversation
        uploads = question.uploads
        if question.is_new:
            conversation.reset()
        elif question.is_retry:
            # As if it had not been asked yet, so with the images that came with it.
            del conversation.messages[self.length_before :]
            uploads = uploads or self.last_uploads
        self.length_before = len(conversation.messages)
        self.last_uploads = uploads
        # Images come before the text, as in the official examples.
        content: list[Item] = [one.item(question.max_pixels) for one in uploads]
        content.append({"type": "text", "text": question.text})
        return conversation.tokens(content, **question.settings)


class Sessions:
    """All visitors. Who was away longest is forgotten where there are too many."""

    def __init__(self, model: Qwen2VLForConditionalGeneration, processor: Qwen2VLProcessor) -> None:
        self.model = model
        self.processor = processor
        self.by_id: dict[str, Session] = {}

    def new(self) -> Session:
        session = Session(self.model, self.processor)
        self.by_id[session.id] = session
        self.make_room(session)
        return session

    def find(self, session_id: object) -> Session:
        """The session of this id; Refused (410) if it was forgotten."""
        session = self.by_id.get(session_id) if isinstance(session_id, str) else None
        if session is None:
            raise Refused("this conversation is not kept any more: it begins anew", 410)
        session.last_used = time.monotonic()
        self.make_room(session)
        return session

    def make_room(self, kept: Session) -> None:
        """Forget those who were away longest, but not one whose answer is being computed."""
        idle = [one for one in self.by_id.values() if one is not kept and not one.is_busy]
        idle.sort(key=lambda session: session.last_used)
        total = sum(session.count_bytes() for session in self.by_id.values())
        for session in idle:
            if len(self.by_id) <= MAX_SESSIONS and total <= MAX_TOTAL_BYTES:
                return
            total -= session.count_bytes()
            del self.by_id[session.id]
