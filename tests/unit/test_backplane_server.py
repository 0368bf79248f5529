"""The server of the backplane: options in its URL."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from app.backplane.server import SentinelServer, check_options, connection_options
from app.errors import SettingsError
from app.setting_values import sentinel_address
from tests.support.tls import Certificates


@pytest.mark.parametrize(
    "url",
    [
        "unix:///run/v.sock?db=1",
        "redis://u:p@h/1?health_check_interval=5",
        "rediss+sentinel://u:p@a/lab/1?ssl_ca_certs=/ca.pem&sentinel_password=s",
        "rediss+cluster://u:p@a/0?ssl_cert_reqs=none",
    ],
)
def test_options_that_connections_have(url: str) -> None:
    check_options(url)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://:hunter2@h/0?colour=red", "colour"),
        ("redis://:hunter2@h/0?ssl_ca_certs=/ca.pem", "ssl_ca_certs"),
        ("redis://:hunter2@h/0?client_name=me", "client_name"),
        ("redis+sentinel://:hunter2@h/lab?socket_timeout=soon", "socket_timeout"),
        ("rediss+cluster://:hunter2@h?ssl_cert_reqs=perhaps", "perhaps"),
    ],
)
def test_an_option_that_they_do_not_have_is_named_in_one_line(url: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says) as raised:
        check_options(url)
    line = str(raised.value)
    assert line.startswith("BACKPLANE_URL: ")
    assert "\n" not in line
    assert "hunter2" not in line


def test_certificates_are_read_again_only_when_they_have_changed(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        Certificates(tmp_path / name, "127.0.0.1")
    authority = tmp_path / "ca.pem"
    shutil.copy(tmp_path / "old" / "ca.pem", authority)
    kind, options = connection_options(f"rediss://h/0?ssl_ca_certs={authority}")

    def context() -> Any:
        return kind(**options).ssl_context.get()  # type: ignore[attr-defined]

    first = context()
    assert context() is first
    shutil.copy(tmp_path / "new" / "ca.pem", tmp_path / "put")
    os.replace(tmp_path / "put", authority)
    assert context() is not first
    assert context() is context()


def test_a_file_that_cannot_be_read_is_tried_again(tmp_path: Path) -> None:
    authority = tmp_path / "ca.pem"
    kind, options = connection_options(f"rediss://h/0?ssl_ca_certs={authority}")
    with pytest.raises(OSError, match="No such file"):
        kind(**options).ssl_context.get()  # type: ignore[attr-defined]
    Certificates(tmp_path, "127.0.0.1")
    assert kind(**options).ssl_context.get()  # type: ignore[attr-defined]


def test_sentinels_are_asked_with_the_same_certificates() -> None:
    address = sentinel_address("rediss+sentinel://a,b/lab")
    assert address is not None
    server: Any = SentinelServer(address)
    kind, options = server._kind, server._options
    own = kind(host="h", port=1, **options).ssl_context
    for client in server._sentinels.sentinels:
        assert client.connection_pool.make_connection().ssl_context is own
