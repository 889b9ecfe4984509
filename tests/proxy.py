"""A TCP proxy in front of a server, for tests that cut the wire.

`with Proxy(server) as proxy:` listens on a port of its own; `proxy.url(database)` goes through it. `cut()` closes every
connection, `stop()` refuses new ones as well until `start()`, `freeze()` keeps connections open and lets nothing pass
until `thaw()`, which then delivers what was held back, as a network does that comes back. `forget()` does so for good with the
connections that are open, and serves new ones, as a load balancer does that was restarted.
The trap: a connection that a cut has closed may still have delivered its last bytes; that is the point of such tests.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType

from tests.mysql_servers import MysqlServer
from tests.servers import SUPERUSER, PostgresServer, free_port

CHUNK = 65536  # bytes


class Proxy:
    """Passes connections on to a server, until told otherwise."""

    def __init__(self, server: PostgresServer | MysqlServer) -> None:
        self.server = server
        self.port = free_port()
        self._flowing = threading.Event()
        self._forgotten: list[threading.Event] = []
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener: socket.socket | None = None

    def __enter__(self) -> Proxy:
        self._flowing.set()
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
        self.thaw()
        for flowing in self._forgotten:
            flowing.set()

    def url(self, database: str = SUPERUSER, user: str = SUPERUSER, password: str | None = None) -> str:
        """The URL of a PostgreSQL server by way of the proxy."""
        assert isinstance(self.server, PostgresServer)
        return self.through(self.server.url(database, user, password))

    def through(self, url: str) -> str:
        """A URL of the server by way of the proxy."""
        return url.replace(f":{self.server.port}/", f":{self.port}/")

    @property
    def connections(self) -> int:
        """How many connections are open through the proxy."""
        with self._lock:
            return len(self._open) // 2

    def start(self) -> None:
        """Take connections, on the same port every time."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=[self._listener], name="proxy-accept", daemon=True).start()

    def stop(self) -> None:
        """Refuse new connections and cut the open ones."""
        if self._listener is not None:
            _close(self._listener)
            self._listener = None
        self.cut()

    def cut(self) -> None:
        """Close every open connection, on both of its sides."""
        with self._lock:
            for end in self._open:
                _shut(end)

    def freeze(self) -> None:
        """Let nothing pass any more, and keep all connections open."""
        self._flowing.clear()

    def thaw(self) -> None:
        self._flowing.set()

    def forget(self) -> None:
        """Let nothing pass any more on the connections that are open, and keep them open."""
        self._flowing.clear()
        self._forgotten.append(self._flowing)
        self._flowing = threading.Event()
        self._flowing.set()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # stop() has closed the listener
            while True:
                client, _ = listener.accept()
                self._join(client)

    def _join(self, client: socket.socket) -> None:
        try:
            upstream = socket.create_connection(("127.0.0.1", self.server.port))
        except OSError:  # the server is down: the client sees its connection closed
            _close(client)
            return
        for end in (client, upstream):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._open |= {client, upstream}
        for source, target in ((client, upstream), (upstream, client)):
            threading.Thread(target=self._pass_on, args=[source, target, self._flowing], name="proxy-pass", daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, flowing: threading.Event) -> None:
        """Carry bytes one way; each direction closes the socket that it reads from."""
        with contextlib.suppress(OSError):  # cut: the other direction notices as well
            while data := source.recv(CHUNK):
                flowing.wait()
                target.sendall(data)
        _shut(target)
        with self._lock:
            self._open.discard(source)
        _close(source)


def _shut(end: socket.socket) -> None:
    """Wake whoever waits on the socket: closing alone does not."""
    with contextlib.suppress(OSError):  # shut already
        end.shutdown(socket.SHUT_RDWR)


def _close(end: socket.socket) -> None:
    _shut(end)
    end.close()
