"""The server of the backplane: options in its URL."""

from __future__ import annotations

import pytest

from app.backplane.server import check_options
from app.errors import SettingsError


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
