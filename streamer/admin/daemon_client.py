"""Asking the running daemon over HTTP, as `status`, `kick`, `pause` and `resume` do. A proxy is never used: it is this machine.

What the daemon answers is in http.py.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, Final

from streamer.config import Config
from streamer.errors import UsageError

ANSWER_SECONDS: Final = 5.0
ACT_SECONDS: Final = 30.0
"""A kick of a continuous sync asks the sources, which may be far."""


def ask_status(config: Config) -> Mapping[str, Any] | None:
    """Return what the daemon says of its streams, None if nobody listens. Raises UsageError if something else answers."""
    url = _url(config, "/status")
    try:
        answer = json.loads(_answer(urllib.request.Request(url), ANSWER_SECONDS))
        list(answer["streams"])
    except (urllib.error.HTTPError, ValueError, KeyError, TypeError):
        raise _stranger(url) from None
    except OSError:
        return None
    return dict(answer)


def tell(config: Config, sync: str, what: str) -> Mapping[str, Any]:
    """Ask the daemon to `kick`, `pause` or `resume` a sync; return its answer.

    Raises UsageError if it refuses, if nobody listens, or if something else answers.
    """
    url = _url(config, f"/syncs/{sync}/{what}")
    try:
        return dict(json.loads(_answer(urllib.request.Request(url, method="POST"), ACT_SECONDS)))
    except urllib.error.HTTPError as error:
        raise _refusal(url, error) from None
    except (ValueError, TypeError):
        raise _stranger(url) from None
    except OSError as error:
        reason = "takes too long to answer" if "timed out" in str(error) else "does not answer: none runs with this config"
        raise UsageError(f"the daemon on {_url(config, '')} {reason}", "start it: streamer run") from None


def _refusal(url: str, error: urllib.error.HTTPError) -> UsageError:
    """What the daemon says against it."""
    try:
        answer = json.load(error)
        return UsageError(str(answer["error"]), str(answer["remedy"]))
    except (ValueError, KeyError, TypeError):
        return _stranger(url)


def _stranger(url: str) -> UsageError:
    return UsageError(f"what answers on {url} is not streamer", "set another port in [http] listen")


def _url(config: Config, path: str) -> str:
    host, port = config.http.address
    return f"http://{f'[{host}]' if ':' in host else host}:{port}{path}"


def _answer(request: urllib.request.Request, seconds: float) -> bytes:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(request, timeout=seconds) as response:
        body: bytes = response.read()
    return body
