"""What systemd is told: that we are ready, reload, stop, and live (sd_notify). Without systemd nothing is said.

It is a datagram to the socket that $NOTIFY_SOCKET names; one that cannot be sent is nobody's failure.

https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress


class ServiceManager:
    """Talks to systemd as the environment says."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):  # an abstract socket
            self._address = "\0" + self._address[1:]
        microseconds = environ.get("WATCHDOG_USEC", "")
        meant = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        #: seconds between two signs of life; half of what systemd waits for, as it recommends
        self._interval = int(microseconds) / 2e6 if microseconds.isdecimal() and meant else math.inf
        self._alive_at = 0.0

    def ready(self, status: str) -> None:
        """Everything has been started, or reloaded; `status` is what `systemctl status` shows."""
        self._send(f"READY=1\nSTATUS={status}")

    def reloading(self) -> None:
        """The config is read again; `ready` follows."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """We are about to end."""
        self._send("STOPPING=1")

    def expects_life(self) -> bool:
        """Whether a sign of life is due."""
        return time.monotonic() - self._alive_at >= self._interval

    def alive(self) -> None:
        """A sign of life for the watchdog."""
        self._alive_at = time.monotonic()
        self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.setblocking(False)
            sender.sendto(message.encode(), self._address)
