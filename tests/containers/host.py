"""A machine with systemd, in a container of its own: what the pages say of hosts is done there as written."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any, Self

from tests.containers import project
from tests.support import REPO, programs
from tests.support.copies import Done
from tests.support.waiting import until_now

PLACE = "/opt/yujian-presence"
_COPIED = (
    *("app", "workers", "scripts", "caddy", "deploy", "monitoring", "clients/python"),
    *(
        "gunicorn.conf.py",
        "requirements.txt",
        "requirements.lock",
        "docker-compose.yml",
        "Caddyfile",
    ),
    *("deploy-websocket.sh", "rollback.sh", "verify-deployment.sh"),
)
# systemd writes its own part of the cgroups; it gets nothing of the machine's beside that.
_BOOT = """
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
  mount -o remount,rw /sys/fs/cgroup
else
  umount /sys/fs/cgroup/systemd 2> /dev/null || mkdir -p /sys/fs/cgroup/systemd
  mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
fi
systemctl mask --quiet systemd-firstboot.service systemd-tmpfiles-clean.timer
exec /lib/systemd/systemd
"""

_CADDY = """
[Unit]
Description=Caddy
After=network.target

[Service]
Type=notify
User=caddy
Group=caddy
ExecStart=/usr/bin/caddy run --environ --config /etc/caddy/Caddyfile
ExecReload=/usr/bin/caddy reload --config /etc/caddy/Caddyfile --force
TimeoutStopSec=5s
LimitNOFILE=65536
PrivateTmp=true
ProtectSystem=full
AmbientCapabilities=CAP_NET_BIND_SERVICE
"""

LISTENER = """
import asyncio, aiohttp, json
async def main():
    async with aiohttp.ClientSession() as http:
        async with http.ws_connect("http://127.0.0.1:3001/ws/realtime?types=system") as ws:
            print("open", flush=True)
            async for frame in ws:
                got = json.loads(frame.data)
                for one in got["data"] if got.get("type") == "batch" else [got]:
                    if one.get("event") in ("tick", "gap"):
                        print(one["event"], one.get("seq"), flush=True)
            print("closed", ws.close_code, flush=True)
asyncio.run(main())
"""
"""A client that prints what it receives, and its end."""


class Host:
    """The machine."""

    def __init__(self) -> None:
        self._environ = project.engine()
        self._name = ""

    def __enter__(self) -> Self:
        self._name = self.docker(
            *("run", "--detach", "--hostname", "lab", "--env", "container=docker"),
            *("--workdir", PLACE),  # made where it is missing
            # What systemd needs, without the machine's devices and kernel settings.
            *("--cap-add", "SYS_ADMIN", "--cgroupns", "private"),
            *("--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined"),
            *("--tmpfs", "/run", "--tmpfs", "/run/lock", "--tmpfs", "/tmp:exec"),
            *("yujian-test-host:1", "sh", "-c", _BOOT),
        )
        try:
            self.wait_booted()
            self._copy()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.docker("rm", "--force", "--volumes", self._name)

    def docker(self, *arguments: str, **options: Any) -> str:
        """Run `docker`; what it printed."""
        done = subprocess.run(
            ["docker", *arguments], env=self._environ, capture_output=True, timeout=180, **options
        )
        assert done.returncode == 0, f"{arguments}: {done.stderr.decode()}"
        return done.stdout.decode().strip()

    def _copy(self) -> None:
        packed = subprocess.run(
            ["tar", "--create", "--owner=0", "--group=0", "--exclude=__pycache__", *_COPIED],
            cwd=REPO,
            stdout=subprocess.PIPE,
            check=True,
        )
        unpack = ("exec", "--interactive", self._name, "tar", "-xf", "-", "-C", PLACE)
        self.docker(*unpack, input=packed.stdout)

    def wait_booted(self) -> None:
        """Wait until systemd has started everything."""

        def is_up() -> bool:
            # `degraded` names a unit that failed: then the wait ends with an error.
            return self.call("systemctl is-system-running").out.strip() == "running"

        until_now(is_up, "systemd has booted", 60)

    def reboot(self) -> None:
        """Stop the machine, and start it again."""
        self.docker("restart", self._name)
        self.wait_booted()

    def call(self, command: str, *, timeout: float = 150) -> Done:
        """Run a command of root's shell in the directory of the service."""
        done = subprocess.run(
            ["docker", "exec", "--workdir", PLACE, self._name, "bash", "-ec", command],
            env=self._environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def run(self, command: str) -> str:
        """Run a command that must succeed; what it printed."""
        done = self.call(command)
        assert done.code == 0, (command, done)
        return done.out.strip()

    def as_written(self, page: str, command: str) -> str:
        """Run a command of a page of the repository."""
        text = re.sub(r"^#", "", (REPO / page).read_text(), flags=re.MULTILINE)
        assert " ".join(command.split()) in " ".join(text.split()), f"{page} does not say {command}"
        return self.run(command)

    def install_caddy(self) -> None:
        """What Debian's package of Caddy brings: the program, its user and its unit."""
        self.docker("cp", "--quiet", programs.find("caddy"), f"{self._name}:/usr/bin/caddy")
        self.run("useradd --system --create-home --home-dir /var/lib/caddy caddy")
        self.run(f"cat > /lib/systemd/system/caddy.service << 'END'\n{_CADDY}\nEND")

    def listen(self) -> Path:
        """Start a client; the file in the machine to which it writes."""
        log = Path("/tmp/listener")
        self.run(f"cat > /tmp/listen.py << 'END'\n{LISTENER}\nEND")
        self.run(f"setsid --fork .venv/bin/python /tmp/listen.py > {log} 2>&1 < /dev/null")
        until_now(lambda: self.run(f"cat {log}") == "open", "the client is connected", 30)
        return log

    def publish(self) -> int:
        """Publish a message; its number."""
        head = "Authorization: Bearer $(sed -n s/^PUBLISH_TOKEN=//p /etc/yujian-presence/env)"
        body = json.dumps({"type": "system", "event": "tick", "data": {}})
        answer = self.run(
            f"curl -sSf -H \"{head}\" -H 'Content-Type: application/json' -d '{body}'"
            " http://127.0.0.1:3001/ws/broadcast"
        )
        return int(json.loads(answer)["seq"])
