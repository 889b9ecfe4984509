"""What pydantic complains of in streamer.toml, in one line for people."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Final

from pydantic import ValidationError

from streamer.conflict_config import KeyProblem

_RULES: Final = {
    "missing": "is missing",
    "too_short": "is empty; name at least one",
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false, without quotes"),
    "tuple_type": 'must be a list, like ["a", "b"]',
    "dict_type": "must hold tables, like [{key}.NAME]",
    "model_type": "must be a table, [{key}]",
    "string_pattern_mismatch": "names are lower-case letters, digits and _, start with a letter and have 25 characters at most",
}
"""What to say instead of pydantic's words, by its error type."""


def first_problem(error: ValidationError, known_keys: Callable[[tuple[int | str, ...]], Iterable[str]]) -> str:
    """Return one thing that pydantic complains of, as one line that names the key. Never the value: it may hold a password.

    `known_keys` gives what could stand beside a key that is unknown, by its place.
    """
    problems = error.errors(include_url=False, include_input=False)
    # a mistyped key may be missing as well: target for targets, table for tables
    problem = next((p for p in problems if p["type"] in ("extra_forbidden", "dict_type")), problems[0])
    cause = problem.get("ctx", {}).get("error")
    location = (*problem["loc"], *(cause.key if isinstance(cause, KeyProblem) else ()))
    parts = [part for part in location if isinstance(part, str) and part != "[key]"]
    key = ".".join(f'"{part}"' if "." in part or not part else part for part in parts)
    if problem["type"] == "extra_forbidden":
        return f'unknown key "{key}"{nearest(str(problem["loc"][-1]), known_keys(problem["loc"]))}'
    message = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    message = _RULES.get(problem["type"], message).replace("{key}", key)
    if problem["type"] == "dict_type" and (plural := f"{problem['loc'][-1]}s") in known_keys(problem["loc"]):
        message += f', unless you mean "{plural}"'
    return f"{key}: {message}" if key else message


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint for a mistyped word."""
    known = list(known)
    match = difflib.get_close_matches(word, known, n=1)
    return f'; did you mean "{match[0]}"?' if match else f"; known: {', '.join(known)}"
