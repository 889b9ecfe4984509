"""`[http]` of streamer.toml: where the running daemon answers, and who may ask.

The trap: whoever can ask can also pause; so off loopback there must be a token, and no message ever tells it.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from streamer.conflict_config import KeyProblem

SHORTEST_TOKEN: Final = 12


class Http(BaseModel):
    """`[http]`: where the running daemon answers `status` and Prometheus."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: host:port; anything but loopback needs a token
    listen: str = "127.0.0.1:9851"
    #: what requests must carry as a bearer token; without it nobody is asked for one
    token: str | None = Field(default=None, repr=False)

    @field_validator("listen")
    @classmethod
    def _address(cls, listen: str) -> str:
        host, _, port = listen.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        if not host or bracketed != (":" in host) or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError("must be HOST:PORT, like 127.0.0.1:9851 or [::1]:9851")
        return listen

    @field_validator("token")
    @classmethod
    def _good_token(cls, token: str | None) -> str | None:
        if token is not None and (len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token):
            raise ValueError(
                f"must be at least {SHORTEST_TOKEN} characters of ASCII without spaces, for example of: openssl rand -hex 24"
            )
        return token

    @model_validator(mode="after")
    def _protected(self) -> Self:
        if not self.loopback and self.token is None:
            raise KeyProblem(
                ["token"],
                f'is missing, and {self.listen} can be reached from other machines; write token = "${{STREAMER_TOKEN}}" and '
                "export STREAMER_TOKEN, or listen on 127.0.0.1",
            )
        return self

    @property
    def address(self) -> tuple[str, int]:
        """Host and port, as sockets take them."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        host = self.address[0]
        try:
            return ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    @property
    def url(self) -> str:
        """Where commands on the same machine find it."""
        host, port = self.address
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # what stands for every address is none to connect to
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"
