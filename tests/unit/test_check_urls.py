"""Two nodes of a sync whose urls lead to one database."""

from __future__ import annotations

import pytest

from streamer.config import Config, Sync
from streamer.errors import ConfigError
from streamer.node_config import Node
from streamer.topology import check_urls


@pytest.mark.parametrize(
    ("url", "other"),
    [
        ("postgresql://u:p@db1/shop", "postgresql://u:p@db1/shop"),
        ("postgresql://u:p@db1/shop", "postgresql://v@db1/shop"),
        ("postgresql://u@db1", "postgresql://u@db1"),
    ],
)
def test_a_url_that_was_copied_and_not_corrected_is_refused_by_run_too(url: str, other: str) -> None:
    config = Config(
        nodes={"a": Node(url=url), "b": Node(url=other)}, syncs={"shop": Sync(sources=("a",), targets=("b",), tables=("*.*",))}
    )
    with pytest.raises(ConfigError, match=r'sync "shop": nodes "a" and "b" are the same database; correct nodes\.a\.url or'):
        check_urls(config)


@pytest.mark.parametrize(
    ("url", "other"),
    [
        ("postgresql://u@db1/shop", "postgresql://u@db1/stock"),
        ("postgresql://u@db1/shop", "postgresql://u@db1:5433/shop"),
        ("postgresql://u@db1", "postgresql://v@db1"),  # the database has the name of the role
        ("postgresql:///shop?host=/run/a", "postgresql:///shop?host=/run/b"),
    ],
)
def test_databases_with_similar_urls_are_accepted(url: str, other: str) -> None:
    check_urls(
        Config(
            nodes={"a": Node(url=url), "b": Node(url=other)}, syncs={"shop": Sync(sources=("a",), targets=("b",), tables=("*.*",))}
        )
    )
