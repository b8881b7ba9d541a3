"""A user-space TCP proxy that misbehaves on request: for links that stall, drop, reset, delay, throttle and slice.

    with FaultProxy(("127.0.0.1", box.port)) as proxy:
        proxy.mode = "blackhole"      # sockets stay open, not a byte passes, either way
        proxy.reset()                 # every connection ends with RST
        proxy.delay_s = 0.075         # each way: 150 ms round trip, without limiting the rate
        proxy.rate = 1_000_000        # bytes per second, each way
        proxy.slice = 7               # at most so many bytes per write
        proxy.mode = "refuse"         # new connections are reset at once

Bytes that arrive in a blackhole are swallowed, as by a dead network whose sender has no answer: a stream that lived
through one is broken for good, which is what a client has to notice. No privilege is needed.
"""

from __future__ import annotations

import collections
import contextlib
import select
import socket
import struct
import threading
import time
from typing import Literal, Self

Mode = Literal["pass", "blackhole", "refuse", "hold"]
"""hold: bytes are kept and delivered when the mode is pass again, as by a router with a full queue."""


class FaultProxy:
    """One listening port before one server."""

    def __init__(self, upstream: tuple[str, int]) -> None:
        self.upstream = upstream
        self.mode: Mode = "pass"
        self.delay_s = 0.0
        self.rate: float | None = None
        self.slice: int | None = None
        self.connections = 0
        """How many were accepted."""
        self.resets = 0
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self._stopping = threading.Event()
        threading.Thread(target=self._accept, daemon=True, name="fault-proxy").start()

    def open_pairs(self) -> int:
        """Connections that pass now."""
        with self._lock:
            return len(self._pairs)

    def reset(self) -> int:
        """End every connection with RST, both ways; returns how many."""
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            for end in pair:
                _rst(end)
        self.resets += len(pairs)
        return len(pairs)

    def close(self) -> None:
        """Stop listening and drop what is open."""
        self._stopping.set()
        self._listener.close()
        self.reset()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            if self.mode == "refuse":
                _rst(client)
                continue
            threading.Thread(target=self._serve, args=(client,), daemon=True, name="fault-proxy-pair").start()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self.upstream, 5)
        except OSError:
            _rst(client)
            return
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.settimeout(None)
        pair = (client, server)
        with self._lock:
            self._pairs.add(pair)
        other = threading.Thread(target=self._pump, args=(server, client), daemon=True, name="fault-proxy-back")
        other.start()
        self._pump(client, server)
        other.join()
        with self._lock:
            self._pairs.discard(pair)
        for end in pair:
            with contextlib.suppress(OSError):
                end.close()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        """Pass bytes one way; a queue of (due, bytes) makes delay without limiting the rate."""
        queue: collections.deque[tuple[float, bytes]] = collections.deque()
        queued, ended = 0, False
        try:
            while not (ended and not queue):
                wait = 0.5
                if queue and self.mode != "hold":
                    wait = max(0.0, queue[0][0] - time.monotonic())
                elif self.mode == "hold":
                    wait = 0.02
                room = not ended and queued < 64 << 20
                readable = select.select([source] if room else [], [], [], min(wait, 0.05))[0] if wait or room else []
                if readable:
                    data = source.recv(1 << 17)
                    if not data:
                        ended = True
                    elif self.mode != "blackhole":
                        queue.append((time.monotonic() + self.delay_s, data))
                        queued += len(data)
                while queue and self.mode != "hold" and queue[0][0] <= time.monotonic():
                    data = queue.popleft()[1]
                    queued -= len(data)
                    if self.mode != "blackhole":
                        self._send(sink, data)
                if self._stopping.is_set():
                    return
        except (OSError, ValueError):
            _rst(sink)
            _rst(source)
            return
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def _send(self, sink: socket.socket, data: bytes) -> None:
        size = self.slice or (max(1, int(self.rate / 50)) if self.rate else len(data))
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            sink.sendall(piece)
            if self.rate:
                time.sleep(len(piece) / self.rate)


def _rst(end: socket.socket) -> None:
    """Close at once with RST instead of FIN."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.suppress(OSError):
        end.close()  # a pump that waits on it lets go within its 50 ms; the RST follows then
