"""Connections between processes that share a model, so that all end together, with one line.

Processes that share a model wait for one another in every layer: when one has ended, the others
would wait for ever. So each has a connection to the first, which tells all what it hears. A
process whose connection closes without a word was lost. Threads of their own listen, since the
main thread may be inside a library.
"""

import contextlib
import os
import secrets
import selectors
import signal
import socket
import sys
import threading
import time
from typing import TextIO

import torch.distributed as dist

CONNECT_SECONDS = 60.0
REPORT_SECONDS = 2.0  # for a report to be printed by the first process
INTERRUPT_SECONDS = 1.0  # after Ctrl-C, for the main thread to end by itself
LOST = 1  # exit statuses
INTERRUPTED = 130
STOP = 0  # the number of no signal


class Lifeline:
    """This process's connections: of the first to all others, of the others to the first."""

    def __init__(self, rank: int, count: int) -> None:
        self.rank = rank
        self.count = count
        self.stderr: TextIO = sys.stderr  # kept, since sys.stderr may be replaced
        self.links = self.accept_all() if rank == 0 else {0: self.connect()}
        self.finished: set[int] = set()  # processes that have ended well
        self.received: dict[int, bytes] = {other: b"" for other in self.links}
        self.has_spoken = False
        self.watches_signals = False
        self.lock = threading.Lock()
        self.selector = selectors.DefaultSelector()
        for other, link in self.links.items():
            keep_alive(link)
            self.selector.register(link, selectors.EVENT_READ, other)
        # What this process tells its own thread: numbers of signals, and STOP.
        self.heard, self.told = socket.socketpair()
        self.told.setblocking(False)
        self.selector.register(self.heard, selectors.EVENT_READ, self.rank)
        self.thread = threading.Thread(target=self.listen, daemon=True)
        self.thread.start()

    # ----------------------------------------------------------------------------- connecting

    def accept_all(self) -> dict[int, socket.socket]:
        """Of the first process: a connection to each other, by its number."""
        host = os.environ.get("MASTER_ADDR", "localhost")
        server = listening_socket(host)
        server.settimeout(CONNECT_SECONDS)
        secret = secrets.token_bytes(16)  # known to processes of this launch only
        dist.broadcast_object_list([host, server.getsockname()[1], secret], src=0)
        links: dict[int, socket.socket] = {}
        while len(links) < self.count - 1:
            link, _ = server.accept()
            link.settimeout(CONNECT_SECONDS)
            greeting = receive_exactly(link, len(secret) + 4)
            link.settimeout(None)
            if greeting[4:] == secret:
                links[int.from_bytes(greeting[:4], "big")] = link
        server.close()
        return links

    def connect(self) -> socket.socket:
        """Of the others: the connection to the first process."""
        told: list = [None, None, None]
        dist.broadcast_object_list(told, src=0)
        host, port, secret = told
        link = socket.create_connection((host, port), timeout=CONNECT_SECONDS)
        link.settimeout(None)
        link.sendall(self.rank.to_bytes(4, "big") + secret)
        return link

    # ------------------------------------------------------------------------------- speaking

    def report(self, text: str, status: int) -> None:
        """Print a line on stderr, once for all processes, and have all others end with `status`.

        The caller ends by itself.
        """
        if self.rank == 0:
            self.speak(text)
            self.finished.update(self.links)  # they end because they are told: none is lost
            self.tell_all(f"end {status}")
            return
        # The first process prints it and answers, upon which this process ends.
        self.tell(0, f"end {status} {text}")
        time.sleep(REPORT_SECONDS)

    def finish(self) -> None:
        """Tell the others that this process needs them no more, and end the thread.

        A thread that still runs while Python shuts down can take the whole process with it.
        """
        self.tell_all("done")
        if self.watches_signals:
            signal.set_wakeup_fd(-1)
        self.told.send(bytes([STOP]))
        self.thread.join(timeout=REPORT_SECONDS)

    def speak(self, text: str) -> None:
        """Print a line on stderr, unless one was printed already: what follows from it is noise."""
        with self.lock:
            if text and not self.has_spoken:
                print(text, file=self.stderr, flush=True)
            self.has_spoken = True

    def tell_all(self, message: str) -> None:
        for other in self.links:
            self.tell(other, message)

    def tell(self, other: int, message: str) -> None:
        one_line = " ".join(message.split())
        with contextlib.suppress(OSError):  # it has ended already
            self.links[other].sendall(one_line.encode() + b"\n")

    # ------------------------------------------------------------------------------ listening

    def watch_interrupts(self) -> None:
        """End this process soon after Ctrl-C even while its main thread waits in a library.

        For a main thread that is a program of ours only: it takes Python's wake-up descriptor.
        """
        signal.set_wakeup_fd(self.told.fileno(), warn_on_full_buffer=False)
        self.watches_signals = True

    def listen(self) -> None:
        """The work of the thread: hear whoever speaks, until it is told to stop."""
        while True:
            for key, _ in self.selector.select():
                link = key.fileobj
                assert isinstance(link, socket.socket)
                try:
                    data = link.recv(4096)
                except OSError:  # a connection that was reset
                    data = b""
                if key.data == self.rank:
                    if STOP in data:
                        return
                    self.hear_signal(data)
                elif data:
                    self.hear(key.data, data)
                else:
                    self.selector.unregister(link)
                    self.hear_end(key.data)

    def hear_signal(self, data: bytes) -> None:
        """data: the numbers of signals that this process got."""
        if signal.SIGINT not in data:
            return
        self.tell_all(f"end {INTERRUPTED}")
        time.sleep(INTERRUPT_SECONDS)
        os._exit(INTERRUPTED)

    def hear(self, other: int, data: bytes) -> None:
        """data: some bytes of a process's messages, each of which is a line."""
        *lines, rest = (self.received[other] + data).split(b"\n")
        self.received[other] = rest
        for line in lines:
            word, _, message = line.decode().partition(" ")
            if word == "done":
                self.finished.add(other)
            else:
                status, _, text = message.partition(" ")
                self.end(text, int(status))

    def hear_end(self, other: int) -> None:
        """A connection has closed."""
        if other in self.finished:
            return
        text = f"error: process {other} of the {self.count} that share the model was lost"
        # The first process tells all; where it is the lost one, the second one does.
        is_speaker = self.rank == 0 or self.rank == 1
        self.end(text if is_speaker else "", LOST)

    def end(self, text: str, status: int) -> None:
        """End this process and, from the first one, all others, whatever the main thread does."""
        self.speak(text)
        if self.rank == 0:
            self.tell_all(f"end {status}")
        os._exit(status)


def listening_socket(host: str) -> socket.socket:
    """A socket at any free port of this machine's address `host`."""
    family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    try:
        return socket.create_server((address[0], 0), family=family)
    except OSError:  # the name leads to the outside of a container, say
        return socket.create_server(("", 0))


def receive_exactly(link: socket.socket, length: int) -> bytes:
    """The next bytes of a connection; fewer if it ends."""
    data = b""
    while len(data) < length:
        more = link.recv(length - len(data))
        if not more:
            break
        data += more
    return data


def keep_alive(link: socket.socket) -> None:
    """Let the system find out within five seconds that the machine at the other end is gone."""
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 2), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", 2)):
        option = getattr(socket, name, None)  # not on all systems
        if option is not None:
            link.setsockopt(socket.IPPROTO_TCP, option, value)
