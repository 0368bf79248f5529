"""What the scripts say of a service that is not as it should be: the truth, in words and exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts import probe
from tests.support import REPO
from tests.support.copies import Installed
from tests.support.impostor import Authority, Impostor, Page
from tests.support.ports import free_port
from tests.support.program import run
from tests.support.service import TOKEN

pytestmark = pytest.mark.timeout(120)

API = "api.test"
OK = Page(200, '{"status":"ok"}')
MOVED = Page(301, "", headers={"Location": "https://elsewhere.test/status"})
OF_SITE = Page(200, "<html>Welcome</html>", "text/html")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of the machine that the tests run on."""
    for name in ("AUTH_SECRET", "PUBLISH_TOKEN"):
        monkeypatch.setenv(name, "")


# python -m scripts.probe, which deploy-websocket.sh, rollback.sh and verify-deployment.sh ask


@pytest.mark.parametrize(
    ("page", "said"),
    [
        (MOVED, "/status answers 301, a redirect to https://elsewhere.test/status"),
        (
            Page(308, "", headers={"Location": "/there"}),
            "/status answers 308, a redirect to /there",
        ),
        (OF_SITE, "/status answers 200 without JSON"),
        (Page(502, "Bad Gateway", "text/html"), "/status answers 502 without JSON"),
        (Page(200, "[]"), "/status answers 200 with JSON that is no object"),
        (Page(200, "null"), "/status answers 200 with JSON that is no object"),
        (Page(200, '"ok"'), "/status answers 200 with JSON that is no object"),
        (Page(200, "{}"), "/status answers 200, status None"),
        (OK, "/status is that of another service: it names no workers"),
        (
            Page(200, '{"status":"ok","workers":7}'),
            "/status is that of another service: it names no workers",
        ),
        (
            Page(200, '{"status":"degraded","causes":["2 of 4 workers","no disk"]}'),
            "/status answers 200, status 'degraded': 2 of 4 workers; no disk",
        ),
        (
            Page(200, '{"status":"ok","workers":[],"version":"1","connections":0}'),
            "/there-is-no-such-page answers 404 without JSON",
        ),
    ],
)
def test_another_service(page: Page, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Impostor({"/status": page}) as impostor:
        assert probe.main(["http", impostor.url()]) == 1
    assert capsys.readouterr().out == f"{said}\n"


def test_endpoints_of_another_service(capsys: pytest.CaptureFixture[str]) -> None:
    pages = {"/ws/stats": Page(200, '{"connections":1}')}
    with Impostor(pages) as impostor:
        assert probe.main(["endpoints", impostor.url()]) == 1
        assert capsys.readouterr().out == "/ws/stats answers 200 without totalConnections\n"


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        (["hello"], "the WebSocket is that of another service: it sends no JSON objects"),
        (["[1]"], "the WebSocket is that of another service: it sends no JSON objects"),
        (['{"a":1}'], "nothing of what was waited for came within 0.5 s"),
        ([], "nothing of what was waited for came within 0.5 s"),
    ],
)
def test_the_websocket_of_another_service(
    frames: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probe, "_TIMEOUT", 0.5)
    with Impostor(frames=frames) as impostor:
        assert probe.main(["socket", impostor.url()]) == 1
    assert capsys.readouterr().out == f"{said}\n"


@pytest.mark.parametrize(
    ("page", "said"),
    [
        (MOVED, "/ws/realtime answers 301, a redirect to https://elsewhere.test/status"),
        (OF_SITE, "the handshake is answered 200"),
        (
            Page(404, '{"code":"NOT_FOUND","error":"No."}'),
            "the handshake is answered 404 NOT_FOUND: No.",
        ),
    ],
)
def test_a_handshake_that_is_answered_otherwise(
    page: Page, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Impostor({"/ws/realtime": page}) as impostor:
        assert probe.main(["socket", impostor.url()]) == 1
    assert capsys.readouterr().out == f"{said}\n"


@pytest.mark.parametrize("check", ["http", "endpoints", "socket", "private"])
def test_a_service_that_does_not_answer_in_time(
    check: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_TIMEOUT", 0.3)
    with Impostor() as impostor:
        impostor.silent.set()
        assert probe.main([check, impostor.url()]) == 1
        assert capsys.readouterr().out == f"{impostor.url()} does not answer within 0.3 s\n"


CERTIFICATES = {
    "expired": "certificate has expired",
    "self-signed": "self.signed certificate",
    "another name": "(?i)hostname mismatch|not valid for",
    "another authority": "unable to get local issuer certificate|self.signed certificate in",
    "ends soon": "valid for 4.9 days more, until .*; at least 14 are wanted",
}


def certificate(authority: Authority, case: str, home: Path) -> Path:
    match case:
        case "expired":
            return authority.certificate(API, -1)
        case "self-signed":
            return authority.self_signed(API)
        case "another name":
            return authority.certificate("other.test", 100)
        case "another authority":
            return Authority(home, "another").certificate(API, 100)
        case _:
            return authority.certificate(API, 4.9)


@pytest.mark.parametrize("case", CERTIFICATES)
def test_certificates(
    case: str, authority: Authority, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Impostor({"/status": OK}, certificate(authority, case, tmp_path)) as impostor:
        options = [impostor.url(API), "--connect", "127.0.0.1", "--ca", str(authority.root)]
        assert probe.main(["certificate", *options]) == 1
        assert re.search(CERTIFICATES[case], capsys.readouterr().out)
        assert probe.main(["http", *options]) == 1
        said = capsys.readouterr().out
        if case == "ends soon":
            assert "another service" in said, "it is valid"
        else:
            assert re.search(CERTIFICATES[case], said)


def test_a_port_without_tls_and_a_name_that_stands_for_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Impostor() as impostor:
        base = impostor.url().replace("http", "https")
        for check in ("http", "certificate"):
            assert probe.main([check, base]) == 1
            assert re.search("(?i)wrong.version.number|record layer", capsys.readouterr().out)
    for check in ("http", "endpoints", "socket", "private", "certificate"):
        assert probe.main([check, "https://nowhere.invalid"]) == 1
        assert re.search("not known|resolution|resolve|No address", capsys.readouterr().out)
        assert probe.main([check, f"https://127.0.0.1:{free_port()}"]) == 1
        assert re.search("(?i)refused|connect call failed", capsys.readouterr().out)


def test_an_address_may_stand_for_another_one(capsys: pytest.CaptureFixture[str]) -> None:
    """As where BIND is an address of its own: the service is asked by a name that it accepts."""
    with Impostor({"/status": OF_SITE}, frames=["hello"]) as impostor:
        for host in ("10.255.255.1", "[fd00::1]", "nowhere.invalid"):
            base = f"http://{host}:{impostor.port}"
            for check, said in (("http", "without JSON"), ("socket", "is that of another service")):
                assert probe.main([check, base, "--connect", "127.0.0.1"]) == 1
                assert said in capsys.readouterr().out
            assert impostor.hosts[-1] == f"{host}:{impostor.port}"
        base = f"https://10.255.255.1:{impostor.port}"
        assert probe.main(["http", base, "--connect", "127.0.0.1"]) == 1
        assert "needs a base URL with a name" in capsys.readouterr().out


# The scripts themselves


def verify(*options: str, **environ: str) -> tuple[int, dict[str, str]]:
    """verify-deployment.sh: its exit code, and what it says of the checks that failed."""
    done = subprocess.run(
        [REPO / "verify-deployment.sh", "--json", *options],
        env=dict(os.environ) | {"PYTHON": sys.executable} | environ,
        capture_output=True,
        text=True,
        timeout=60,
    )
    checks = json.loads(done.stdout)["checks"]
    failed = {row["check"]: row["detail"] for row in checks if row["state"] == "failed"}
    return done.returncode, failed


def test_verify_names_the_first_check_that_fails_and_all_of_them(
    authority: Authority, tmp_path: Path
) -> None:
    options = ("--connect", "127.0.0.1", "--ca", str(authority.root))
    expired = certificate(authority, "expired", tmp_path)
    with Impostor({"/status": OK}, expired) as impostor:
        code, failed = verify(
            impostor.url(API), *options, "--only", "http,endpoints,handshake,ports,certificate"
        )
        assert code == 11
        assert failed.keys() == {"http", "endpoints", "handshake", "certificate"}
        for check, said in failed.items():
            assert "certificate has expired" in said, check
        code, failed = verify(impostor.url(API), *options, "--only", "ports,certificate")
        assert (code, failed.keys()) == (17, {"certificate"})
    with Impostor({"/status": MOVED}) as impostor:
        code, failed = verify(impostor.url(), "--only", "http,ports")
        assert code == 11
        assert failed == {
            "http": "/status answers 301, a redirect to https://elsewhere.test/status"
        }


def test_verify_says_why_a_port_takes_no_connection() -> None:
    port = free_port()
    code, failed = verify(
        "http://127.0.0.1", "--only", "ports", "--ports", f"{port},nowhere.invalid:80"
    )
    assert code == 16
    assert re.fullmatch(
        rf"closed: 127.0.0.1:{port} Connection refused; nowhere.invalid:80 .*(known|resolution)",
        failed["ports"],
    )


HEALTH = REPO / "monitoring/health-check.sh"


@pytest.mark.parametrize("case", ["expired", "self-signed", "another name", "another authority"])
def test_the_health_check_and_certificates(case: str, authority: Authority, tmp_path: Path) -> None:
    with Impostor({"/status": OK}, certificate(authority, case, tmp_path)) as impostor:
        done = run(
            HEALTH,
            *("--dry-run", "--no-docker", "--connect", "127.0.0.1", "--ca", authority.root),
            *("--timeout", "3", impostor.url(API)),
        )
    assert done.returncode == 11, done
    expected = {
        "expired": "certificate has expired",
        "self-signed": "self.signed certificate",
        "another name": "no alternative certificate subject name matches",
        "another authority": "unable to get local issuer|self.signed certificate in",
    }[case]
    http = next(line for line in done.stdout.splitlines() if "http" in line.split()[:2])
    assert re.search(f"does not answer: .*{expected}", http), done.stdout


@pytest.mark.parametrize(
    ("page", "said"),
    [
        (MOVED, "/status answers 301, a redirect to https://elsewhere.test/status"),
        (OF_SITE, "/status answers something else"),
        (Page(200, "[]"), "/status answers something else"),
        (Page(200, "{}"), "/status answers something else"),
    ],
)
def test_the_health_check_and_another_service(page: Page, said: str) -> None:
    with Impostor({"/status": page}) as impostor:
        done = run(HEALTH, "--dry-run", "--no-docker", impostor.url())
    assert done.returncode == 11, done
    assert f"{said}\n" in done.stdout


def test_the_health_check_without_an_answer() -> None:
    with Impostor() as impostor:
        impostor.silent.set()
        done = run(HEALTH, "--dry-run", "--no-docker", "--timeout", "1", impostor.url())
    assert done.returncode == 11, done
    assert re.search("does not answer: .*timed out", done.stdout)
    done = run(HEALTH, "--dry-run", "--no-docker", "http://nowhere.invalid")
    assert done.returncode == 11, done
    assert re.search("does not answer: .*Could not resolve host", done.stdout)


# Clients need a token


@pytest.fixture(scope="module")
def guarded() -> Iterator[Installed]:
    """A service whose clients need a token."""
    service = Installed(
        AUTH_SECRET="s" * 32,
        AUTH_AUDIENCE="lab,other",
        AUTH_ISSUER="issuer",
        ALLOWED_HOSTS="api.example.org",
        # The probe's own message comes after the test's: it waits until it may publish.
        PUBLISH_RATE_LIMIT=1,
    )
    service.start()
    yield service
    service.stop()


def test_a_service_that_asks_its_clients_for_a_token_is_deployed(guarded: Installed) -> None:
    done = guarded.run("verify-deployment.sh", guarded.base, "--only", "handshake")
    assert done.code == 0, done
    assert "sent and received" in done.out, "with a token of its own"
    deployed = guarded.run("deploy-websocket.sh", "--json")
    assert deployed.code == 0, deployed
    health = run(HEALTH, "--dry-run", "--no-docker", guarded.base)
    assert health.returncode == 0, health


def test_a_probe_that_cannot_make_a_token(
    guarded: Installed, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with AUTH_JWKS_URL, or on another machine."""
    monkeypatch.setenv("PUBLISH_TOKEN", TOKEN)
    for options in ([], ["--origin", guarded.base]):
        assert probe.main(["socket", guarded.base, *options]) == 0
        said = capsys.readouterr().out
        assert said.startswith(
            "no message was awaited: clients need a token, and there is no AUTH_"
        )
        assert "found in the history" in said
    # With one that is not valid it is no good service, or not this one.
    monkeypatch.setenv("AUTH_SECRET", "x" * 32)
    assert probe.main(["socket", guarded.base]) == 1
    assert "the handshake is answered 401 UNAUTHORIZED" in capsys.readouterr().out
