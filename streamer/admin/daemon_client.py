"""Asking the running daemon over HTTP, as `status`, `kick`, `pause` and `resume` do. A proxy is never used: it is this machine.

What the daemon answers is in http.py.
"""

from __future__ import annotations

import http.client
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
    """Return what the daemon says of its streams and nodes, None if nobody listens. Raises UsageError if something else
    answers, or the token is wrong."""
    url = f"{config.http.url}/status"
    try:
        answer = json.loads(_answer(_request(config, url), ANSWER_SECONDS))
        list(answer["streams"]), list(answer["nodes"])
    except urllib.error.HTTPError as error:
        raise _refusal(url, error) from None
    except (ValueError, KeyError, TypeError, http.client.HTTPException):
        raise _stranger(url) from None
    except OSError:
        return None
    return dict(answer)


def tell(config: Config, sync: str, what: str, body: bytes = b"") -> Mapping[str, Any]:
    """Ask the daemon to `kick`, `pause` or `resume` a sync, or tell it what was `verified`; return its answer.

    Raises UsageError if it refuses, if nobody listens, or if something else answers.
    """
    url = f"{config.http.url}/syncs/{sync}/{what}"
    try:
        return dict(json.loads(_answer(_request(config, url, "POST", body), ACT_SECONDS)))
    except urllib.error.HTTPError as error:
        raise _refusal(url, error) from None
    except (ValueError, TypeError, http.client.HTTPException):
        raise _stranger(url) from None
    except OSError as error:
        reason = "takes too long to answer" if "timed out" in str(error) else "does not answer: none runs with this config"
        raise UsageError(f"the daemon on {config.http.url} {reason}", "start it: streamer run") from None


def _refusal(url: str, error: urllib.error.HTTPError) -> UsageError:
    """What the daemon says against it."""
    try:
        answer = json.load(error)
        return UsageError(str(answer["error"]), str(answer["remedy"]))
    except (ValueError, KeyError, TypeError):
        return _stranger(url)


def _stranger(url: str) -> UsageError:
    return UsageError(f"what answers on {url} is not streamer", "set another port in [http] listen")


def _request(config: Config, url: str, method: str = "GET", body: bytes = b"") -> urllib.request.Request:
    headers = {"Authorization": f"Bearer {config.http.token}"} if config.http.token else {}
    headers |= {"Content-Type": "application/json"} if body else {}
    return urllib.request.Request(url, body or None, headers, method=method)


def _answer(request: urllib.request.Request, seconds: float) -> bytes:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(request, timeout=seconds) as response:
        body: bytes = response.read()
    return body
