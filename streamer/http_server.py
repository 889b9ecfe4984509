"""The server under the control API: the standard library's, a thread for each request.

A port that another streamer has is waited for, and the daemon runs meanwhile: two with the same config on one machine are an active
one and its standby. A port that anything else has is an error. The trap: requests come while we stop, and the process must neither
wait for a slow one nor complain of one that was cut off.
"""

from __future__ import annotations

import errno
import http.client
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from socketserver import BaseRequestHandler, TCPServer, ThreadingMixIn
from typing import IO, Final, TypeAlias, cast
from wsgiref.simple_server import ServerHandler, WSGIRequestHandler, WSGIServer, make_server

import structlog

from streamer import __version__
from streamer.errors import UsageError
from streamer.http import Control, application

RETRY_SECONDS: Final = 1.0
"""How often a standby tries to get the port."""
REQUEST_SECONDS: Final = 30.0
"""How long a request may take to come, or an answer to be taken."""
LEAVE_SECONDS: Final = 2.0
"""How long requests that are being answered may take when the server ends."""
SOFTWARE: Final = f"streamer/{__version__}"
"""The header by which a streamer is known."""

Request: TypeAlias = socket.socket | tuple[bytes, socket.socket]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], handler: type[BaseRequestHandler]) -> None:
        self._answering: set[threading.Thread] = set()
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Bind, without asking a name server for our name."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def process_request_thread(self, request: Request, client_address: object) -> None:
        thread = threading.current_thread()
        self._answering.add(thread)
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._answering.discard(thread)

    def handle_error(self, request: Request, client_address: object) -> None:
        """Tell of an error of ours; a client that has gone, or is too slow, is none."""
        if not isinstance(sys.exception(), OSError):
            structlog.get_logger().exception("http_request_failed")

    def finish(self) -> None:
        """Stop listening, and give requests that are being answered a moment."""
        self.shutdown()
        self.server_close()
        deadline = time.monotonic() + LEAVE_SECONDS
        for thread in list(self._answering):
            thread.join(max(0.0, deadline - time.monotonic()))


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Answer(ServerHandler):
    server_software = SOFTWARE


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_SECONDS

    def handle(self) -> None:
        """Answer one request, as the standard library does it, under our name."""
        self.raw_requestline = self.rfile.readline(65537)
        if len(self.raw_requestline) > 65536:
            self.send_error(414)
        elif self.parse_request():
            answer = _Answer(
                cast(IO[bytes], self.rfile), cast(IO[bytes], self.wfile), self.get_stderr(), self.get_environ(), multithread=True
            )
            answer.request_handler = self  # type: ignore[attr-defined]
            answer.run(self.server.get_app())  # type: ignore[attr-defined]

    def log_message(self, format: str, *args: object) -> None:
        """Requests are no event of replication."""


class _Listener:
    """Serves in a thread of its own, from when the port is ours."""

    def __init__(self, address: tuple[str, int], control: Control, token: str | None) -> None:
        self._address = address
        self._application = application(control, token)
        self._stop = threading.Event()
        self._server: _Server | None = None
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    def start(self) -> None:
        """Begin to serve, or to wait for the port. Raises UsageError if something else than streamer has it."""
        try:
            self._server = self._bind()
        except OSError as error:
            host, port = self._address
            if error.errno != errno.EADDRINUSE or not is_streamer(self._address):
                raise UsageError(
                    f"http.listen {host}:{port}: {error.strerror or error}",
                    "end what listens there, or set another port in [http] listen",
                ) from None
            reason = "another streamer answers there; this one stands by, and takes the port over when that ends"
            structlog.get_logger().warning("http_standby", listen=f"{host}:{port}", reason=reason)
        self._thread.start()

    def _bind(self) -> _Server:
        host, port = self._address
        kind = _Server6 if ":" in host else _Server
        return make_server(host, port, self._application, server_class=kind, handler_class=_Handler)

    def _run(self) -> None:
        while self._server is None:
            if self._stop.wait(RETRY_SECONDS):
                return
            try:
                self._server = self._bind()
            except OSError:  # still taken; whoever has it now, we were told to have it
                continue
            structlog.get_logger().info("http_took_over", listen=f"{self._address[0]}:{self._address[1]}")
        self._server.serve_forever(poll_interval=0.1)

    def stop(self) -> None:
        """Stop serving; requests that are being answered get a moment."""
        self._stop.set()
        if self._server is not None:
            self._server.finish()
        self._thread.join(timeout=2)


def is_streamer(address: tuple[str, int]) -> bool:
    """Return whether a streamer answers at this address."""
    connection = http.client.HTTPConnection(*address, timeout=2)
    try:
        connection.request("GET", "/healthz")
        return (connection.getresponse().getheader("Server") or "").startswith("streamer/")
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@contextmanager
def serving(address: tuple[str, int], control: Control, token: str | None = None) -> Iterator[None]:
    """Serve while the context lasts. Raises UsageError if something else than another streamer has the port."""
    listener = _Listener(address, control, token)
    listener.start()
    try:
        yield
    finally:
        listener.stop()
