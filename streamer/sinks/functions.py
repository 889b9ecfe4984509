"""Functions of the user's own, named in the config as `python:package.module:function`: how they are found, and how they fail."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from streamer.errors import ConfigError


def find(name: str, what: str, takes: str) -> Callable[..., Any]:
    """Return the function; `what` names its place in the config for people, `takes` what it is called with.

    Raises ConfigError if there is none, or its module cannot be imported.
    """
    module_name, _, function_name = name.removeprefix("python:").partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _broken(what, module_name, error) from error
        raise ConfigError(
            f'{what}: there is no module "{error.name}"',
            "install its package for the Python that runs streamer, or put its folder into PYTHONPATH",
        ) from None
    except Exception as error:
        raise _broken(what, module_name, error) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        lack = "no function" if function is None else f"{type(function).__name__}, not a function,"
        raise ConfigError(f'{what}: module "{module_name}" has {lack} "{function_name}"', f"name one that takes {takes}")
    return function  # type: ignore[no-any-return]  # what it returns is looked at when it does


def told(error: Exception) -> str:
    """Return an error of the function as one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def _broken(what: str, module: str, error: Exception) -> ConfigError:
    return ConfigError(f'{what}: module "{module}" cannot be imported: {told(error)}', f"try: python -c 'import {module}'")
