"""The HTTP server: the page, its questions, and the interface of the common form beside it.

    GET  /               the page
    POST /api/hello      a session, and what the page must know
    POST /api/media      an image or clip, as it is in its file
    GET  /api/cost       what an image of some size costs in tokens
    GET  /api/frames/NAME  the frames that the model sees of an example clip
    POST /api/ask        a question; the answer comes as lines of JSON while it is generated
    POST /api/stop       ends the answer that is being computed
    POST /api/inside     what is looked into after an answer
    GET  /api/state      how many are asking
    GET  /v1/models, POST /v1/chat/completions: see openai_api.py

Nothing is written to a disk, and no address is fetched.
"""

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import torch
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from processor import Qwen2VLProcessor
from qwen2vl import Qwen2VLForConditionalGeneration
from qwen2vl_app.web.clips import frames_shown
from qwen2vl_app.web.inside import look_inside
from qwen2vl_app.web.limits import (
    MAX_IMAGE_BYTES,
    MAX_JSON_BYTES,
    MAX_MEDIA,
    MAX_NEW_TOKENS,
    MAX_QUESTION,
    Refused,
)
from qwen2vl_app.web.openai_api import OpenAIInterface, openai_error
from qwen2vl_app.web.requests import (
    Fields,
    flag_of,
    integer_of,
    number_of,
    read_body,
    read_json,
    text_of,
    texts_of,
)
from qwen2vl_app.web.sessions import Question, Session, Sessions
from qwen2vl_app.web.uploads import MAX_BYTES, Upload, check_upload, count_tokens
from qwen2vl_app.web.workers import Event, Job, Workers

STATIC = Path(__file__).parent / "static"
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"  # in a clone
DEFAULT_QUESTION = "Describe this image."
# Parameters: below, two answers at a time are faster than one on all cores.
SMALL_MODEL = 50_000_000

# The page takes everything from this server, and the browser is told to refuse anything else.
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


class Guard:
    """Adds HEADERS to every response, and refuses what another site's page sends."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                for name, value in HEADERS.items():
                    message["headers"].append((name.encode(), value.encode()))
            await send(message)

        headers = dict(scope["headers"])
        origin = headers.get(b"origin")
        host = headers.get(b"host", b"")
        if origin is not None and origin not in (b"http://" + host, b"https://" + host):
            response = JSONResponse({"error": "this server answers its own page only"}, 403)
            await response(scope, receive, send_with_headers)
            return
        await self.app(scope, receive, send_with_headers)


class PageServer:
    """The state behind the routes: model, visitors and workers."""

    def __init__(
        self,
        model: Qwen2VLForConditionalGeneration,
        processor: Qwen2VLProcessor,
        name: str,
        settings: dict[str, object] | None = None,
        join: str | None = None,
        join_svg: str = "",
        knows: str = "",
    ) -> None:
        """name: of the model, as it is shown. settings: of `model.stream`, where the page sets
        none. join: the address for phones, if it is served to any; join_svg: its QR code. knows:
        what a small model can be asked about, a line beside the question.
        """
        self.model = model
        self.processor = processor
        self.name = name
        self.settings = settings or {}
        self.join = join
        self.join_svg = join_svg
        self.knows = knows
        self.examples: dict[str, list[dict[str, object]]] = {}  # their frames, by the clip's name
        self.sessions = Sessions(model, processor)
        num_parameters = sum(p.numel() for p in model.parameters())
        is_small = num_parameters < SMALL_MODEL and model.device.type == "cpu"
        self.workers = Workers(2, 1) if is_small else Workers(1, torch.get_num_threads())
        self.openai = OpenAIInterface(model, processor, name, self.workers)
        # Looking at an upload decodes it: two at a time.
        self.decoders = anyio.CapacityLimiter(2)

    def app(self) -> Starlette:
        """The application that uvicorn serves."""
        routes = [
            Route("/", self.page),
            Route("/api/hello", self.hello, methods=["POST"]),
            Route("/api/media", self.add_media, methods=["POST"]),
            Route("/api/cost", self.cost),
            Route("/api/frames/{name}", self.example_frames),
            Route("/api/ask", self.ask, methods=["POST"]),
            Route("/api/stop", self.stop, methods=["POST"]),
            Route("/api/inside", self.inside, methods=["POST"]),
            Route("/api/state", self.state),
            Route("/api/join.svg", self.join_code),
            Route("/notebooks/{name}", self.notebook),
            Route("/v1/models", self.openai.models),
            Route("/v1/models/{name:path}", self.openai.model_facts),
            Route("/v1/chat/completions", self.openai.complete, methods=["POST"]),
            Mount("/static", StaticFiles(directory=STATIC)),
        ]
        return Starlette(
            routes=routes,
            middleware=[Middleware(Guard)],
            exception_handlers={Refused: answer_refused},
            lifespan=self.lifespan,
        )

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self.workers.start()
        yield
        self.workers.stop()

    # ------------------------------------------------------------------------ what the page needs

    async def page(self, request: Request) -> Response:
        return Response((STATIC / "index.html").read_bytes(), media_type="text/html")

    async def hello(self, request: Request) -> Response:
        """A new session; the model's name and limits."""
        config = self.model.config
        image_processor = self.processor.image_processor
        token_side = image_processor.patch_size * image_processor.merge_size
        facts = {
            "session": self.sessions.new().id,
            "model": self.name,
            "knows": self.knows,
            "context": config.max_position_embeddings,
            "tokenSide": token_side,
            "minPixels": image_processor.min_pixels,
            "maxPixels": image_processor.max_pixels,
            "maxNewTokens": MAX_NEW_TOKENS,
            "temperature": self.settings.get("temperature") or 0,
            "topP": self.settings.get("top_p") or 1,
            "longest": self.settings.get("max_new_tokens") or MAX_NEW_TOKENS,
            "maxMedia": MAX_MEDIA,
            "maxQuestion": MAX_QUESTION,
            "join": self.join,
            # Their bytes, by name: none in a wheel.
            "notebooks": {path.stem: path.stat().st_size for path in NOTEBOOKS.glob("*.ipynb")},
        }
        return JSONResponse(facts)

    async def state(self, request: Request) -> Response:
        facts = {
            "running": len(self.workers.running),
            "waiting": len(self.workers.waiting),
            "sessions": len(self.sessions.by_id),
        }
        return JSONResponse(facts)

    async def join_code(self, request: Request) -> Response:
        if self.join is None:
            raise Refused("the page is served to this machine only: --host 0.0.0.0", 404)
        return Response(self.join_svg, media_type="image/svg+xml")

    async def notebook(self, request: Request) -> Response:
        """A notebook of the course, to be saved; a clone has them, a wheel does not."""
        name = request.path_params["name"]
        known = {path.name: path for path in NOTEBOOKS.glob("*.ipynb")}
        if name not in known:
            raise Refused("there is no such notebook here", 404)
        return FileResponse(known[name], media_type="application/x-ipynb+json", filename=name)

    async def cost(self, request: Request) -> Response:
        fields: dict[str, object] = {}
        for name in ("width", "height", "maxPixels"):
            value = request.query_params.get(name)
            if value is not None:
                fields[name] = int(value) if value.isascii() and value.isdigit() else value
        width = integer_of(fields, "width", 1, 100_000)
        height = integer_of(fields, "height", 1, 100_000)
        if width is None or height is None:
            raise Refused("width and height are needed")
        return JSONResponse(self.tokens_for(width, height, self.max_pixels(fields)))

    def tokens_for(self, width: int, height: int, max_pixels: int | None) -> dict[str, object]:
        try:
            return count_tokens(self.processor, width, height, max_pixels)
        except ValueError as error:
            raise Refused(str(error)) from None

    def max_pixels(self, fields: Fields) -> int | None:
        limits = self.processor.image_processor
        return integer_of(fields, "maxPixels", limits.min_pixels, limits.max_pixels)

    async def add_media(self, request: Request) -> Response:
        """Keep an uploaded file: its id and size; of an image its cost, of a clip its frames."""
        session = self.sessions.find(request.query_params.get("session"))
        kind = request.query_params.get("kind", "")
        content = await read_body(request, MAX_BYTES.get(kind, MAX_IMAGE_BYTES))
        upload = await anyio.to_thread.run_sync(check_upload, kind, content, limiter=self.decoders)
        facts: dict[str, object] = {"kind": kind, "width": upload.width, "height": upload.height}
        if kind == "image":
            facts["cost"] = self.tokens_for(upload.width, upload.height, None)
        else:
            facts["frames"] = await self.frames_of(upload)
        facts["id"] = session.add(upload)
        return JSONResponse(facts)

    async def frames_of(self, upload: Upload) -> list[dict[str, object]]:
        """The frames that the model sees of a clip; Refused if it can't be decoded."""
        try:
            return await anyio.to_thread.run_sync(
                frames_shown, self.processor, upload, limiter=self.decoders
            )
        except ValueError as error:
            raise Refused(str(error)) from None

    async def example_frames(self, request: Request) -> Response:
        """The frames of an example clip, for its button."""
        name = request.path_params["name"]
        known = {path.name: path for path in (STATIC / "examples").glob("*.mp4")}
        if name not in known:
            raise Refused("there is no such clip here", 404)
        if name not in self.examples:  # every visitor asks for them, and they stay as they are
            upload = check_upload("video", known[name].read_bytes())
            self.examples[name] = await self.frames_of(upload)
        return JSONResponse({"frames": self.examples[name]})

    # ---------------------------------------------------------------------------------- questions

    async def ask(self, request: Request) -> Response:
        """Answer a question: lines of JSON, the last of which has "done" or "error"."""
        fields = await read_json(request, MAX_JSON_BYTES)
        session = self.sessions.find(fields.get("session"))
        question = self.read_question(session, fields)
        await self.free(session)
        session.job = self.workers.submit(lambda job: self.answer(session, question, job))
        return StreamingResponse(json_lines(session.job), media_type="application/x-ndjson")

    def read_question(self, session: Session, fields: Fields) -> Question:
        settings = dict(self.settings)
        for name, value in (
            ("max_new_tokens", integer_of(fields, "maxNewTokens", 1, MAX_NEW_TOKENS)),
            ("temperature", number_of(fields, "temperature", 0, 2)),
            ("top_p", number_of(fields, "topP", 0.01, 1)),
            ("seed", integer_of(fields, "seed", 0, 2**53)),
        ):
            if value is not None:
                settings[name] = value
        text = text_of(fields, "text", MAX_QUESTION).strip()
        return Question(
            text=text or DEFAULT_QUESTION,
            uploads=session.find(texts_of(fields, "media")),
            is_new=flag_of(fields, "isNew"),
            is_retry=flag_of(fields, "isRetry"),
            max_pixels=self.max_pixels(fields),
            settings=settings,
        )

    async def free(self, session: Session) -> None:
        """End what is computed for a session: its conversation is touched by one job at a time."""
        while session.is_busy:
            assert session.job is not None
            session.job.cancel()
            await session.job.finished()

    def answer(self, session: Session, question: Question, job: Job) -> None:
        """Compute an answer; in a thread."""
        conversation = session.conversation
        stream = self.processor.text_stream()
        count = 0
        token_id = -1
        for token in session.tokens(question):
            count += 1
            token_id = int(token)
            piece = stream.push(token_id)
            if piece:
                job.send({"text": piece})
            if job.is_cancelled:
                break
        rest = stream.finish()
        if rest:
            job.send({"text": rest})
        done: Event = {
            "done": True,
            "turn": len(conversation.messages) - 1,
            "ended": token_id in conversation.end_tokens,
            "answerTokens": count,
            "promptTokens": len(conversation.keys) - count,
            "mediaTokens": sum(one.medium.num_tokens for one in conversation.writer.opened),
            "tokensLeft": conversation.tokens_left,
        }
        job.send(done)

    async def stop(self, request: Request) -> Response:
        """End the answer that is being computed; what was said so far stays."""
        fields = await read_json(request, MAX_JSON_BYTES)
        session = self.sessions.find(fields.get("session"))
        if session.job is not None:
            session.job.cancel()
        return JSONResponse({})

    async def inside(self, request: Request) -> Response:
        """What is looked into of the answer at index "turn" of the conversation."""
        fields = await read_json(request, MAX_JSON_BYTES)
        session = self.sessions.find(fields.get("session"))
        turn = integer_of(fields, "turn", 0, 10**6)
        if session.is_busy:
            raise Refused("the answer is not finished yet", 409)

        def look(job: Job) -> None:
            job.send({"inside": look_inside(session.conversation, turn or 0, job)})

        job = self.workers.submit(look)
        session.job = job
        found: Event = {"error": "nothing was found"}
        async for event in job.read():
            if "place" not in event:
                found = event
        if "error" in found:
            raise Refused(str(found["error"]), 409)
        return JSONResponse(found["inside"])


async def json_lines(job: Job) -> AsyncIterator[bytes]:
    """The events of a job, each as a line."""
    async with contextlib.aclosing(job.read()) as events:  # a client that hangs up ends it at once
        async for event in events:
            yield json.dumps(event).encode() + b"\n"


async def answer_refused(request: Request, error: Exception) -> Response:
    """An error of a visitor as JSON: for the page a line, for /v1 in the form of that interface."""
    assert isinstance(error, Refused)
    if request.url.path.startswith("/v1/"):
        return openai_error(error)
    return JSONResponse({"error": str(error)}, error.status)
