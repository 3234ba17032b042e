"""Threads that compute, and the queue before them.

The server's event loop answers requests and never computes. A question becomes a Job, which waits
in one queue for one of a few threads. What a job finds out is kept in the job, whether somebody
reads it or not: a phone that has stopped reading holds up nobody.

All fields of a job are changed in the event loop's thread, so that nothing needs a lock. The one
exception is `is_cancelled`, which a thread only reads.
"""

import asyncio
import queue
import sys
import threading
import traceback
from collections.abc import AsyncGenerator, Callable

import torch

from qwen2vl_app.chat import OUT_OF_MEMORY
from qwen2vl_app.web.limits import MAX_WAITING, Refused

Event = dict[str, object]  # something that a job has found out, as it will be sent


class Job:
    """Something to compute, and the events that came of it so far."""

    def __init__(self, work: Callable[["Job"], None], workers: "Workers") -> None:
        # None once it is done: it holds the visitor's session, and that holds its last job.
        self.work: Callable[[Job], None] | None = work
        self.workers = workers
        self.events: list[Event] = []
        self.is_cancelled = False  # nobody wants it any more
        self.is_done = False
        self.place = 0  # in the queue; 0: it is being computed
        self.news = asyncio.Event()

    def send(self, event: Event) -> None:
        """Add an event: called by `work`, from a thread."""
        self.workers.call(self.add, event)

    def add(self, event: Event) -> None:
        self.events.append(event)
        self.news.set()

    def cancel(self) -> None:
        """Stop it: before its next token, or before it has begun."""
        self.is_cancelled = True

    async def read(self) -> AsyncGenerator[Event, None]:
        """All events, each as soon as it is there; places in the queue while it waits.

        Whoever stops reading early cancels the job.
        """
        count = 0
        place = 0
        try:
            while True:
                self.news.clear()
                if self.place != place:
                    place = self.place
                    yield {"place": place}
                while count < len(self.events):
                    count += 1
                    yield self.events[count - 1]
                if self.is_done and count == len(self.events):
                    return
                if not self.news.is_set():
                    await self.news.wait()
        finally:
            self.cancel()

    async def finished(self) -> None:
        """Wait until it is computed, or was left out since it was cancelled."""
        while not self.is_done:
            await asyncio.sleep(0.01)


class Workers:
    """A few threads that take jobs from one queue, first come, first served.

    count: how many jobs run at once; threads: how many of PyTorch's threads each of them has.
    """

    def __init__(self, count: int, threads: int) -> None:
        self.count = count
        self.threads = threads
        self.waiting: list[Job] = []
        self.running: list[Job] = []
        self.line: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Start the threads; called in the event loop."""
        self.loop = asyncio.get_running_loop()
        for _ in range(self.count):
            threading.Thread(target=self.run, daemon=True).start()

    def stop(self) -> None:
        for job in [*self.waiting, *self.running]:
            job.cancel()
        for _ in range(self.count):
            self.line.put(None)

    def call(self, function: Callable, argument: object) -> None:
        """Have the event loop call a function; from a thread."""
        assert self.loop is not None
        if not self.loop.is_closed():  # at the end of the program nobody listens any more
            self.loop.call_soon_threadsafe(function, argument)

    def submit(self, work: Callable[[Job], None]) -> Job:
        """Put work into the queue. Refused if that is full."""
        if len(self.waiting) >= MAX_WAITING:
            raise Refused(f"{MAX_WAITING} questions are waiting: try again in a minute", 503)
        job = Job(work, self)
        self.waiting.append(job)
        self.tell_places()
        self.line.put(job)
        return job

    def tell_places(self) -> None:
        """Tell each job that waits how many are answered before it, itself included."""
        free = self.count - len(self.running)
        for i, job in enumerate(self.waiting):
            place = max(0, i + 1 - free)
            if place != job.place:
                job.place = place
                job.news.set()

    # ------------------------------------------------------------------------- in the event loop

    def begin(self, job: Job) -> None:
        self.waiting.remove(job)
        self.running.append(job)
        job.place = 0
        self.tell_places()

    def end(self, job: Job) -> None:
        self.running.remove(job)
        job.is_done = True
        job.work = None
        job.news.set()
        self.tell_places()

    # ------------------------------------------------------------------------------ in a thread

    def run(self) -> None:
        """Compute one job after another until the server stops."""
        torch.set_num_threads(self.threads)
        while True:
            job = self.line.get()
            if job is None:
                return
            self.call(self.begin, job)
            try:
                if not job.is_cancelled and job.work is not None:
                    job.work(job)
            except (ValueError, OSError, MemoryError, torch.OutOfMemoryError) as error:
                job.send({"error": str(error) or OUT_OF_MEMORY})
            except Exception:  # whatever a library may raise: the next visitor's answer must come
                traceback.print_exc(file=sys.stderr)
                job.send({"error": "the server made a mistake, which its terminal shows"})
            self.call(self.end, job)
