"""What systemd hears: datagrams at the socket that it names, signs of life at half its patience, and nothing without it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from streamer.service_manager import ServiceManager


@pytest.fixture
def systemd(tmp_path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listening.bind(str(tmp_path / "notify"))
    listening.settimeout(10)
    return listening


def test_it_is_told_what_happens(systemd: socket.socket, tmp_path: Path) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "notify")})
    manager.ready("runs 2 streams")
    manager.reloading()
    manager.stopping()
    with systemd:
        assert systemd.recv(1000) == b"READY=1\nSTATUS=runs 2 streams"
        assert systemd.recv(1000).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert systemd.recv(1000) == b"STOPPING=1"


def test_an_abstract_socket_is_reached_too() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.settimeout(10)
        listening.bind(f"\0streamer-test-{os.getpid()}")
        ServiceManager({"NOTIFY_SOCKET": f"@streamer-test-{os.getpid()}"}).stopping()
        assert listening.recv(1000) == b"STOPPING=1"


def test_life_is_due_at_half_the_patience_of_the_watchdog() -> None:
    assert ServiceManager({"WATCHDOG_USEC": "1"}).expects_life()
    patient = ServiceManager({"WATCHDOG_USEC": "3600000000", "WATCHDOG_PID": str(os.getpid())})
    patient.alive()
    assert not patient.expects_life()


@pytest.mark.parametrize("environ", [{}, {"WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}])
def test_nobody_who_waits_for_it_means_no_sign_of_life(environ: dict[str, str]) -> None:
    assert not ServiceManager(environ).expects_life()


def test_a_socket_that_has_gone_is_nobodys_failure(tmp_path: Path) -> None:
    ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "nothing")}).stopping()
