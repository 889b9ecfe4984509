"""What the url of a node says, what is wrong with it, and that nothing that is shown of it tells a password."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from streamer.node_config import MysqlAddress, Node

SHAPE = "is not mysql://USER:PASSWORD@HOST:PORT/DATABASE?OPTION=VALUE"


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("postgresql://db1/shop", "postgresql"),
        ("postgres://db1/shop", "postgresql"),
        ("mysql://db1/shop", "mysql"),
        ("mariadb://db1/shop", "mysql"),
        ("sqlite:///shop.sqlite", "sqlite"),
        ("jsonl:///shop.jsonl", "jsonl"),
        ("jsonl:-", "jsonl"),
    ],
)
def test_the_scheme_tells_the_kind(url: str, kind: str) -> None:
    assert Node(url=url).kind == kind


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///shop.sqlite", "shop.sqlite"),
        ("sqlite:////var/lib/shop.sqlite", "/var/lib/shop.sqlite"),
        ("sqlite:///what?#1.sqlite", "what?#1.sqlite"),
        ("jsonl:///shop.jsonl", "shop.jsonl"),
        ("jsonl:////var/log/shop.jsonl", "/var/log/shop.jsonl"),
    ],
)
def test_paths_of_files(url: str, path: str) -> None:
    assert Node(url=url).path == Path(path)


def test_only_a_dash_stands_for_standard_output() -> None:
    assert Node(url="jsonl:-").standard_output
    assert not Node(url="jsonl:///-").standard_output


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("mysql://db1/shop", MysqlAddress("db1", 3306, "", "", "shop")),
        ("mariadb://u:p@10.0.0.3:3307/shop", MysqlAddress("10.0.0.3", 3307, "u", "p", "shop")),
        ("mysql://u%40x:p%2F%3A%25@[::1]:1/a%20b", MysqlAddress("::1", 1, "u@x", "p/:%", "a b")),
        (
            "mysql://u@localhost/shop?unix_socket=/run/mysqld/mysqld.sock",
            MysqlAddress("localhost", 3306, "u", "", "shop", unix_socket="/run/mysqld/mysqld.sock"),
        ),
        ("mysql://u@db1/shop?ssl_mode=REQUIRED", MysqlAddress("db1", 3306, "u", "", "shop", ssl_mode="required")),
        (
            "mysql://u@db1/shop?ssl_ca=/ca.pem&ssl_cert=/c.pem&ssl_key=/k.pem",
            MysqlAddress(
                "db1", 3306, "u", "", "shop", ssl_mode="verify_identity", ssl_ca="/ca.pem", ssl_cert="/c.pem", ssl_key="/k.pem"
            ),
        ),
        (
            "mysql://u@db1/shop?ssl_mode=verify-ca&ssl_ca=/ca.pem",
            MysqlAddress("db1", 3306, "u", "", "shop", ssl_mode="verify_ca", ssl_ca="/ca.pem"),
        ),
    ],
)
def test_addresses_of_mysql(url: str, address: MysqlAddress) -> None:
    assert Node(url=url).mysql == address


def test_an_address_shows_no_password() -> None:
    assert "secret" not in repr(MysqlAddress.parse("mysql://u:secret@db1/shop"))


PROBLEMS = {
    "another engine": ("oracle://db1/shop", '"oracle" is not a kind of url that streamer knows; it knows postgresql, mysql'),
    "no url": ("host=db1 password=secret", "is not a url; it begins with postgresql://, mysql://, sqlite:/// or jsonl:///, or"),
    "an SQLite url without a path": ("sqlite:///", "an SQLite url is sqlite:///relative/path or sqlite:////absolute/path"),
    "a jsonl url with a host": ("jsonl://shop.jsonl", "a jsonl url is jsonl:///relative/path or jsonl:////absolute/path;"),
    "no database": ("mysql://u:secret@db1", SHAPE),
    "a password with @": ("mysql://u:sec@ret@db1/shop", SHAPE),
    "a password with /": ("mysql://u:secr/et@db1/shop", SHAPE),
    "a password with %": ("mysql://u:50%secret@db1/shop", SHAPE),
    "a port that is no number": ("mysql://u:secret@db1:x/shop", SHAPE),
    "a port that is too high": ("mysql://u:secret@db1:65536/shop", "has the port 65536; ports are 1 to 65535"),
    "an option that does not exist": (
        "mysql://u:secret@db1/shop?sslmode=require",
        'has the option "sslmode"; the options are unix_socket, ssl_mode, ssl_ca, ssl_cert, ssl_key',
    ),
    "options that are none": ("mysql://db1/shop?secret", "has options that are not NAME=VALUE&NAME=VALUE"),
    "a mode that does not exist": (
        "mysql://db1/shop?ssl_mode=secret",
        "has a value of ssl_mode that does not exist; there are disabled, preferred, required, verify_ca, verify_identity",
    ),
    "verifying without an authority": ("mysql://db1/shop?ssl_mode=verify_ca", "says ssl_mode=verify_ca without ssl_ca, the file"),
    "a key without a certificate": ("mysql://db1/shop?ssl_key=/k.pem", "says ssl_key without ssl_cert"),
}


@pytest.mark.parametrize(("url", "message"), PROBLEMS.values(), ids=PROBLEMS)
def test_problem(url: str, message: str) -> None:
    with pytest.raises(ValueError, match="url") as caught:
        Node(url=url)
    said = str(caught.value.errors(include_input=False, include_url=False)[0]["msg"])  # type: ignore[attr-defined]
    assert said.startswith(f"Value error, {message}")
    assert "secret" not in said


@pytest.mark.parametrize(("url", "kind"), [("sqlite:///x", "sqlite"), ("mysql://u@h/x", "mysql"), ("jsonl:-", "jsonl")])
def test_capture_of_a_node_that_is_never_read_is_refused(url: str, kind: str) -> None:
    with pytest.raises(ValidationError, match=f"capture means something for a PostgreSQL node only, and this one is {kind}"):
        Node(url=url, capture="trigger")
