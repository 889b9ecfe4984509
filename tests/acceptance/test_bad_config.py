"""A config that cannot be read is one line, whatever is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.daemon import Streamer

BAD_CONFIGS: list[tuple[bytes | None, str]] = [
    (None, "is a directory"),
    (b"", "is empty"),
    (b'[nodes.a]\nurl = "postgresql://caf\xe9/x"\n', "is not UTF-8"),
    (b"nodes: [a, b]\n", "is not TOML"),
    (
        b'[nodes.a]\nurl = "oracle://u:hunter2@h/db"\n[nodes.b]\nurl = "sqlite:///x"\n'
        b'[syncs.s]\nsources = ["a"]\ntargets = ["b"]\ntables = ["*"]\n',
        '"oracle" is not a kind of url',
    ),
]


@pytest.mark.parametrize(("content", "words"), BAD_CONFIGS, ids=[words for _, words in BAD_CONFIGS])
def test_a_bad_config_is_one_line(tmp_path: Path, content: bytes | None, words: str) -> None:
    streamer = Streamer(tmp_path, {"a": "postgresql:///x", "b": "sqlite:///y"})
    streamer.path.unlink()
    if content is None:
        streamer.path.mkdir()
    else:
        streamer.path.write_bytes(content)
    done = streamer.command("run", succeeds=False)

    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert "hunter2" not in line
