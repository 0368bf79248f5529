"""A host without containers, under a systemd that really runs: the pages' commands, one after the other."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.containers.host import PLACE, Host
from tests.support.waiting import until_now

pytestmark = pytest.mark.timeout(900)

DEPLOYMENT, RUNBOOK = "docs/operations/DEPLOYMENT.md", "docs/operations/RUNBOOK.md"
UNIT = "deploy/systemd/yujian-presence.service"


def test_a_host_as_the_pages_say() -> None:
    with Host() as host:
        install(host)
        put_caddy_in_front(host)

        log = host.listen()
        host.as_written(DEPLOYMENT, "systemctl reload yujian-presence")
        report = json.loads(host.run("cat /var/lib/yujian-presence/reload.json"))
        assert (report["handed_over"], report["drained"], report["lost"]) == (1, 0, 0), report
        first = host.publish()

        # Root deploys; the files of the service stay its own.
        assert deploy(host, "2.0.0")["seconds"] < 120
        foreign = "find /var/lib/yujian-presence /dev/shm/yujian-* ! -user yujian"
        assert host.run(foreign) == ""
        last = host.publish()
        until_now(
            lambda: host.run(f"cat {log}").endswith(f"tick {last}"), "the client has the message"
        )
        assert host.run(f"cat {log}").split("\n")[:2] == ["open", f"tick {first}"]
        assert "closed" not in host.run(f"cat {log}"), "no connection was closed"

        # A version that does not start: what ran serves on.
        host.run("sed -i 's/^async def create(/async def create(nothing, /' workers/runtime.py")
        done = host.call("./deploy-websocket.sh --json")
        assert done.code in (13, 15), done
        assert done.json["rolled_back"] is True, done
        assert version(host) == "2.0.0"
        assert "create(nothing" not in host.run("cat workers/runtime.py")

        # The newest backup is of 2.0.0: the way back from 3.0.0, and of what was stored.
        backup = deploy(host, "3.0.0")["backup"]
        assert version(host) == "3.0.0"
        host.run(f"./rollback.sh --release-only {backup}")
        assert version(host) == "2.0.0"
        host.publish()
        host.run(f"./rollback.sh --data-only {backup}")
        assert host.run(foreign) == ""
        until_now(lambda: "gap" in host.run(f"cat {log}"), "the client learns of it", 30)
        assert "closed" not in host.run(f"cat {log}"), "no connection was closed"
        assert "damaged" not in host.as_written(DEPLOYMENT, "./rollback.sh --list")
        assert '"logger"' in host.run("scripts/logs.sh --no-follow --lines 5")

        # A service that has stopped: its messages and its log are found, and what systemd listens on
        # is no other program.
        host.run("systemctl stop yujian-presence.service")
        host.run(f"./rollback.sh --data-only {backup}")
        assert host.call("test -e data").code == 1, "they are not restored into another directory"
        assert "Stopped" in host.run("scripts/logs.sh --no-follow --lines 5")
        done = host.call("./deploy-websocket.sh --json")
        assert (done.code, done.json["how"]) == (0, "started by systemd"), done

        # One that cannot start, and is started again and again: the way back is a start.
        host.run("sed -i 's/^async def create(/async def create(nothing, /' workers/runtime.py")
        host.run("systemctl kill --signal KILL yujian-presence.service")
        again = "systemctl show --property NRestarts --value yujian-presence.service"
        until_now(lambda: int(host.run(again)) > 1, "it has failed again", 60)
        host.run(f"./rollback.sh --release-only {backup}")
        assert version(host) == "2.0.0"

        # One that ends just when it is asked to reload.
        host.run(f"install -D -m 0755 /dev/stdin /opt/ends/systemctl <<< '{ENDS_FIRST}'")
        host.run(f"PATH=/opt/ends:$PATH ./rollback.sh --release-only {backup}")
        assert version(host) == "2.0.0"

        # The health check of the runbook, by its timer's service.
        host.as_written(RUNBOOK, "cp monitoring/systemd/yujian-health-check.* /etc/systemd/system/")
        host.as_written(
            RUNBOOK, "systemctl daemon-reload && systemctl enable --now yujian-health-check.timer"
        )
        host.run("systemctl start yujian-health-check.service")
        assert "yujian-health-check.timer" in host.run("systemctl list-timers --no-pager")

        host.reboot()
        until_now(lambda: version(host) == "2.0.0", "it serves after a boot", 60)
        assert host.publish() > 0
        assert host.run("systemctl list-units --failed --plain --no-legend") == ""


# systemctl, for a unit that ends before its reload.
ENDS_FIRST = """#!/bin/bash
if [[ $1 == reload ]]; then
  /bin/systemctl kill --signal KILL "$2"
  while [[ $(/bin/systemctl is-active "$2") == active ]]; do sleep 0.05; done
fi
exec /bin/systemctl "$@"
"""


def install(host: Host) -> None:
    """The service, under systemd."""
    host.as_written(
        DEPLOYMENT,
        "python3 -m venv .venv && .venv/bin/pip install --require-hashes -r requirements.lock",
    )
    host.as_written(
        UNIT,
        "useradd --system --home-dir /var/lib/yujian-presence --shell /usr/sbin/nologin yujian",
    )
    settings = (
        "PUBLISH_TOKEN=0123456789abcdef0123456789abcdef\n"
        "ALLOWED_ORIGINS=https://lab.yujian.team\nTRUSTED_PROXIES=127.0.0.1\nWORKERS=2\n"
    )
    host.run(f"install -D -m 0600 /dev/stdin /etc/yujian-presence/env <<< '{settings}'")
    host.as_written(
        UNIT,
        "cp deploy/systemd/yujian-presence.* /etc/systemd/system/ && systemctl daemon-reload",
    )
    host.as_written(UNIT, "systemctl enable --now yujian-presence.socket yujian-presence.service")
    host.as_written(DEPLOYMENT, "./verify-deployment.sh http://127.0.0.1:3001 --skip certificate")


def put_caddy_in_front(host: Host) -> None:
    """As the page says, with an authority of its own."""
    host.install_caddy()
    host.as_written(
        DEPLOYMENT,
        "install -D -m 0644 deploy/systemd/caddy.conf"
        " /etc/systemd/system/caddy.service.d/yujian-presence.conf",
    )
    settings = "TLS_ISSUER=internal\nAPI_DOMAIN=api.localhost\nSITE_DOMAIN=lab.localhost"
    host.run(f"install -D -m 0644 /dev/stdin /etc/yujian-presence/caddy <<< '{settings}'")
    host.as_written(DEPLOYMENT, "systemctl daemon-reload && systemctl restart caddy")
    root = "/var/lib/caddy/.local/share/caddy/pki/authorities/local/root.crt"
    until_now(lambda: host.call(f"test -s {root}").code == 0, "Caddy has its authority", 30)
    host.run(
        "./verify-deployment.sh https://api.localhost --connect 127.0.0.1"
        f" --ca {root} --days 0 --no-skips"
    )
    curl = f"curl -sSf --cacert {root} --resolve lab.localhost:443:127.0.0.1 https://lab.localhost"
    assert "<title>" in host.run(f"{curl}/")
    assert json.loads(host.run(f"{curl}/config.json")) == {"api": "https://api.localhost:443"}
    host.as_written(DEPLOYMENT, "systemctl reload caddy")
    # Its health checks would start a service that is stopped below, by systemd's socket.
    host.run("systemctl stop caddy")


def deploy(host: Host, to: str) -> dict[str, Any]:
    """Deploy a version; the report."""
    host.run(f"sed -i 's/^__version__ = .*/__version__ = \"{to}\"/' {PLACE}/app/__init__.py")
    done = host.call("./deploy-websocket.sh --json")
    assert done.code == 0, done
    report: dict[str, Any] = done.json
    assert (report["handed_over"], report["noticed"]) == (1, 0), report
    return report


def version(host: Host) -> str:
    """The version that serves; empty when none does."""
    done = host.call("curl -sS http://127.0.0.1:3001/status")
    return str(json.loads(done.out)["version"]) if done.code == 0 else ""
