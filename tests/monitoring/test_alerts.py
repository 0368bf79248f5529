"""Alerts and where they go: checked by Prometheus' and Alertmanager's own tools, and for real."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from gunicorn import arbiter, glogging

from scripts import runbook
from tests.support import REPO
from tests.support.monitoring import MONITORING, needs_alertmanager, needs_prometheus
from tests.support.plain import PlainClient
from tests.support.ports import free_port
from tests.support.program import Program, run
from tests.support.receiver import Receiver
from tests.support.service import TOKEN, Service
from tests.support.waiting import until

RULES = (MONITORING / "alerts.yml").read_text()
TESTS = (MONITORING / "alerts_test.yml").read_text()
RUNBOOK_PAGE = REPO / "docs/operations/RUNBOOK.md"
RUNBOOK = RUNBOOK_PAGE.read_text()
START = MONITORING / "start-alertmanager.sh"

SITE = "https://lab.yujian.team"
"""The site that Caddy serves by default."""

ALERTS = re.findall(r"^ +- alert: (\w+)$", RULES, re.MULTILINE)
REPORT = {
    "WebSocketHighConnectionCount": "warning",
    "WebSocketNoConnections": "critical",
    "BackendDown": "critical",
    "HighMemoryUsage": "warning",
    "HighCPUUsage": "warning",
}
"""Names and severities of the deployment report, section 6.2."""


def rule(alert: str) -> str:
    """The text of one alert's rule."""
    found = re.search(rf"- alert: {alert}\n(.*?)(?=\n\n|\Z)", RULES, re.DOTALL)
    assert found is not None
    return found[1]


# Prometheus


@needs_prometheus
def test_prometheus_takes_the_configuration() -> None:
    result = run("promtool", "check", "config", MONITORING / "prometheus.yml")
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{len(ALERTS)} rules found" in result.stdout


@needs_prometheus
def test_the_unit_tests_of_the_alerts() -> None:
    result = run("promtool", "test", "rules", MONITORING / "alerts_test.yml")
    assert result.returncode == 0, result.stdout + result.stderr


@needs_prometheus
@pytest.mark.parametrize(
    ("alert", "old", "new"),
    [
        ("WebSocketHighConnectionCount", "> 8000", "> 8001"),
        ("WebSocketNoConnections", "== 0", "== 1"),
        ("WebSocketNoConnections", "> 300", "> 0"),
        ("BackendDown", ' or absent(up{job="backend"})', ""),
        ("BackendDown", "for: 1m", "for: 15s"),
        ("HighMemoryUsage", "> 400", ">= 400"),
        ("HighCPUUsage", "> 80", "> 95"),
        ("HighDeliveryLatency", "0.99", "0.95"),
        ("WorkerRestarts", ">= 2", ">= 1"),
    ],
)
def test_the_unit_tests_notice_a_changed_rule(
    tmp_path: Path, alert: str, old: str, new: str
) -> None:
    """Those of its own alert, without the minutes and days that the others take."""
    text = rule(alert)
    assert text.count(old) == 1
    (tmp_path / "alerts.yml").write_text(RULES.replace(text, text.replace(old, new)))
    head, *cases = re.split(r"^(?=  - name: )", TESTS, flags=re.MULTILINE)
    own = [case for case in cases if f"alertname: {alert}\n" in case]
    (tmp_path / "alerts_test.yml").write_text(head + "".join(own))
    result = run("promtool", "test", "rules", tmp_path / "alerts_test.yml")
    assert result.returncode == 1
    assert alert in result.stdout + result.stderr


def test_the_alerts_of_the_report_are_there() -> None:
    severities = {name: re.findall(r"severity: (\w+)", rule(name)) for name in REPORT}
    assert severities == {name: [severity] for name, severity in REPORT.items()}


def test_every_alert_is_complete() -> None:
    assert len(set(ALERTS)) == len(ALERTS) >= 13
    for alert in ALERTS:
        text = rule(alert)
        for part in (
            r"for: \d",
            r"severity: (critical|warning)$",
            'summary: ".',
            'description: ".',
        ):
            assert re.search(part, text, re.MULTILINE), f"{alert} without {part}"
        assert f"runbook_url: {SITE}/runbook.html#{alert.lower()}\n" in text + "\n"


def test_every_alert_is_seen_to_fire_and_not_to_fire() -> None:
    cases = re.split(r"^ +- alertname: ", TESTS, flags=re.MULTILINE)[1:]
    quiet = {case.split()[0] for case in cases if "exp_alerts: []" in case}
    firing = {case.split()[0] for case in cases if "exp_alerts: []" not in case}
    assert quiet == firing == set(ALERTS)


def test_the_runbook_has_a_section_for_every_alert_and_no_other() -> None:
    sections = re.split(r"^## ", RUNBOOK, flags=re.MULTILINE)[1:]
    bodies = {section.split("\n")[0]: section for section in sections}
    assert set(bodies) - {"The health check"} == set(ALERTS)
    for alert in ALERTS:
        for part in ("**Symptom.**", "**What it means.**", "**Look at**\n\n```sh\n", "**Do.**"):
            assert part in bodies[alert], f"{alert} without {part}"


def logged(phrase: str) -> bool:
    """Whether the service, or gunicorn, has it in its code."""
    sources = [*(REPO / "app").rglob("*.py"), *(REPO / "workers").rglob("*.py")]
    sources += [Path(arbiter.__file__), Path(glogging.__file__)]
    return phrase == "Traceback" or any(phrase in source.read_text() for source in sources)


@pytest.mark.parametrize(
    "phrase",
    sorted(
        {
            phrase
            for words in re.findall(r"logs \| grep (?:-A 20 )?-?[EF]* ?'([^']+)'", RUNBOOK)
            for phrase in words.split("|")
            if not re.fullmatch(r"[A-Z]+|.*level.*|\(?(warning|critical)|error\)\"", phrase)
        }
    ),
)
def test_what_the_runbook_looks_for_in_the_log_can_be_there(phrase: str) -> None:
    assert logged(phrase)


def test_links_of_the_runbook_lead_somewhere() -> None:
    titles = {
        title.lower().replace(" ", "-") for title in re.findall("^#+ (.*)$", RUNBOOK, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)\s]+)\)", RUNBOOK):
        if target.startswith("#"):
            assert target[1:] in titles, target
        else:
            assert (RUNBOOK_PAGE.parent / target).exists(), target
    paths = re.findall(r"\bmonitoring/[\w./*-]*[\w*]", RUNBOOK)
    assert [path for path in paths if not list(REPO.glob(path))] == []


def test_the_page_of_the_runbook_is_that_of_the_file_and_has_each_anchor() -> None:
    built = REPO / "app/page/runbook.html"
    assert built.read_text() == runbook.page(RUNBOOK), "run `make page` and commit what it changes"
    assert runbook.PAGE.read_text() == built.read_text()
    anchors = set(re.findall(r'<h\d id="([^"]+)">', built.read_text()))
    assert {alert.lower() for alert in ALERTS} <= anchors
    linked = set(re.findall(r'href="#([^"]+)"', built.read_text()))
    assert linked <= anchors


def test_the_page_of_the_runbook_is_html() -> None:
    assert runbook.page(
        "# A & b\n\nOne `<x>`\n**two** [three](#four)\n<https://a.test/?b&c>\n\n"
        "- [file](../a.py)\n  goes on\n- two\n\n```sh\na <b | c\n\nd\n```\n## Five-six: 7\n"
    ).partition("<body>\n")[2] == (
        '<h1 id="a--b">A &amp; b</h1>\n'
        '<p>One <code>&lt;x&gt;</code> <strong>two</strong> <a href="#four">three</a>'
        ' <a href="https://a.test/?b&amp;c">https://a.test/?b&amp;c</a></p>\n'
        "<ul>\n<li>file goes on</li>\n<li>two</li>\n</ul>\n"
        "<pre><code>a &lt;b | c\n\nd</code></pre>\n"
        '<h2 id="five-six-7">Five-six: 7</h2>\n</body>\n</html>\n'
    )


async def test_the_links_of_the_alerts_open(service: Service) -> None:
    """The service has the page at the path that the alerts name; Caddy's site has the same files."""
    async with aiohttp.ClientSession() as http:
        for name, type in (("runbook.html", "text/html"), ("runbook.css", "text/css")):
            async with http.get(f"{service.base}/{name}") as answer:
                assert answer.status == 200
                assert answer.content_type == type


# Prometheus' settings


def write_configuration(target: Path, **environ: str) -> dict[str, str]:
    """What start-prometheus.sh would start with: files by name."""
    result = run(MONITORING / "start-prometheus.sh", "--write", target, **environ)
    assert result.returncode == 0, result.stderr
    if shutil.which("promtool"):
        checked = run("promtool", "check", "config", target / "prometheus.yml")
        assert checked.returncode == 0, checked.stdout + checked.stderr
    return {path.name: path.read_text() for path in target.rglob("*.yml")}


def test_without_settings_prometheus_takes_the_files_as_they_are(tmp_path: Path) -> None:
    found = write_configuration(tmp_path)
    assert found["alerts.yml"] == RULES
    for name in ("backend", "sites", "caddy", "alertmanager"):
        assert found[f"{name}.yml"] == (MONITORING / f"targets/{name}.yml").read_text()
        assert (tmp_path / f"targets/{name}.yml").is_symlink(), "changes are seen"


@needs_prometheus
@pytest.mark.parametrize(
    ("environ", "sites", "link"),
    [
        (
            {"API_DOMAIN": "a.test", "SITE_DOMAIN": "b.test", "HTTPS_PUBLISH": "443"},
            ["https://a.test/status", "https://b.test/"],
            "https://b.test/runbook.html",
        ),
        (
            {"API_DOMAIN": "a.test", "SITE_DOMAIN": "b.test", "HTTPS_PUBLISH": "127.0.0.1:8443"},
            ["https://a.test:8443/status", "https://b.test:8443/"],
            "https://b.test:8443/runbook.html",
        ),
        (
            {"SITES": "https://c.test/x?y=1", "SITE_DOMAIN": "b.test", "RUNBOOK_URL": "http://d/e"},
            ["https://c.test/x?y=1"],
            "http://d/e",
        ),
    ],
)
def test_targets_and_links_come_from_the_settings(
    tmp_path: Path, environ: dict[str, str], sites: list[str], link: str
) -> None:
    environ |= {"BACKENDS": "10.0.0.1:3001 [::1]:3001", "BLACKBOX": "127.0.0.1:9115"}
    environ |= {"CADDY_METRICS": "127.0.0.1:2019", "ALERTMANAGERS": "127.0.0.1:9093"}
    found = write_configuration(tmp_path, **environ)
    # Once more: as after a change of the settings.
    found = write_configuration(tmp_path, **environ)
    listed = {name: re.findall(r'^    - "(.*)"$', found[name], re.MULTILINE) for name in found}
    assert listed["backend.yml"] == ["10.0.0.1:3001", "[::1]:3001"]
    assert listed["sites.yml"] == sites
    assert 'exporter: "127.0.0.1:9115"' in found["sites.yml"]
    assert listed["caddy.yml"] == ["127.0.0.1:2019"]
    assert listed["alertmanager.yml"] == ["127.0.0.1:9093"]
    links = re.findall(r"runbook_url: (\S+)", found["alerts.yml"])
    assert links == [f"{link}#{alert.lower()}" for alert in ALERTS]
    assert RULES.count("\n") == found["alerts.yml"].count("\n")


@pytest.mark.parametrize("name", ["BACKENDS", "SITES", "RUNBOOK_URL", "CADDY_METRICS"])
@pytest.mark.parametrize("value", ['a"b', "a\\b", "a|b", "a\nb", "a$b"])
def test_settings_that_would_spoil_the_configuration(tmp_path: Path, name: str, value: str) -> None:
    result = run(MONITORING / "start-prometheus.sh", "--write", tmp_path, **{name: value})
    assert result.returncode == 64
    assert name in result.stderr


def test_an_exporter_without_sites_is_refused(tmp_path: Path) -> None:
    result = run(MONITORING / "start-prometheus.sh", "--write", tmp_path, BLACKBOX="127.0.0.1:1")
    assert result.returncode == 64


# Grafana's password


def grafana(tmp_path: Path, **environ: str) -> tuple[str, str]:
    """The password that Grafana is started with, and what is said of it."""
    program = tmp_path / "grafana"
    program.write_text('#!/bin/sh\necho "$GF_SECURITY_ADMIN_PASSWORD $GRAFANA_PASSWORD$*"\n')
    program.chmod(0o755)
    environ = {"GRAFANA": str(program), "GRAFANA_DATA": str(tmp_path)} | environ
    result = run(MONITORING / "start-grafana.sh", "x", **environ)
    assert result.returncode == 0, result.stderr
    return result.stdout.removesuffix(" x\n"), result.stderr


def test_grafana_gets_a_password_by_file_by_setting_or_one_that_is_made(tmp_path: Path) -> None:
    kept, empty = tmp_path / "kept", tmp_path / "empty"
    kept.write_text("by file\n")
    empty.write_text("")
    by_file = {"GRAFANA_PASSWORD_FILE": str(kept), "GRAFANA_PASSWORD": "by setting"}
    assert grafana(tmp_path, **by_file) == ("by file", "")
    for path in (empty, tmp_path / "missing"):
        by_setting = {"GRAFANA_PASSWORD_FILE": str(path), "GRAFANA_PASSWORD": "by setting"}
        assert grafana(tmp_path, **by_setting) == ("by setting", "")
    made, said = grafana(tmp_path, GRAFANA_PASSWORD_FILE=str(empty))
    assert len(made) == 24
    assert str(tmp_path / "first-password") in said
    assert made not in said
    assert (tmp_path / "first-password").stat().st_mode & 0o077 == 0
    assert grafana(tmp_path)[0] == made, "the same at the next start"


# Alertmanager


@needs_alertmanager
def test_alertmanager_takes_the_configuration_as_it_stands() -> None:
    result = run("amtool", "check-config", MONITORING / "alertmanager.yml")
    assert result.returncode == 0, result.stdout + result.stderr


@needs_alertmanager
@pytest.mark.parametrize(
    "url", ["https://hooks.test/T1?a=1&b=2", r'http://h/a|b\c"d$e', "http://127.0.0.1:9"]
)
def test_the_settings_come_into_the_configuration(tmp_path: Path, url: str) -> None:
    result = run(
        START,
        "--print",
        ALERT_WEBHOOK_URL=url,
        BACKEND_URL="http://10.0.0.7:3001/",
        PUBLISH_TOKEN_FILE="/etc/yujian/token",
    )
    assert result.returncode == 0, result.stderr
    urls = re.findall(r'url: ("\S+")', result.stdout)
    assert [json.loads(text) for text in urls] == [url, "http://10.0.0.7:3001/hooks/alertmanager"]
    assert 'credentials_file: "/etc/yujian/token"' in result.stdout
    rendered = tmp_path / "alertmanager.yml"
    rendered.write_text(result.stdout)
    checked = run("amtool", "check-config", rendered)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@needs_alertmanager
def test_without_a_webhook_only_the_clients_are_informed(tmp_path: Path) -> None:
    result = run(START, "--print")
    assert re.findall(r'url: "(\S+)"', result.stdout) == ["http://backend:3001/hooks/alertmanager"]
    rendered = tmp_path / "alertmanager.yml"
    rendered.write_text(result.stdout)
    assert run("amtool", "check-config", rendered).returncode == 0


def test_the_webhook_may_be_kept_in_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "url"
    secret.write_text("https://hooks.test/from-a-file\n")
    result = run(START, "--print", ALERT_WEBHOOK_URL_FILE=str(secret))
    assert '"https://hooks.test/from-a-file"' in result.stdout


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALERT_WEBHOOK_URL", "hooks.test"),
        ("ALERT_WEBHOOK_URL", "http://a b"),
        ("ALERT_WEBHOOK_URL", "http://a\nb"),
        ("ALERT_WEBHOOK_URL_FILE", "/no/such/file"),
        ("BACKEND_URL", "backend:3001"),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: str) -> None:
    result = run(START, "--print", **{name: value})
    assert result.returncode == 64
    assert name in result.stderr


@needs_alertmanager
async def test_an_alert_reaches_the_webhook_and_the_clients_and_so_does_its_end(
    service: Service, receiver: Receiver, tmp_path: Path
) -> None:
    directory = tmp_path / "monitoring"
    directory.mkdir()
    shutil.copy(START, directory)
    quick = re.sub(
        r"group_(wait|interval): \w+",
        r"group_\1: 1s",
        (MONITORING / "alertmanager.yml").read_text(),
    )
    (directory / "alertmanager.yml").write_text(quick)
    address = f"127.0.0.1:{free_port()}"
    alertmanager = Program(
        tmp_path / "alertmanager.log",
        directory / START.name,
        f"--web.listen-address={address}",
        "--cluster.listen-address=",
        f"--storage.path={tmp_path / 'storage'}",
        ALERT_WEBHOOK_URL=f"{receiver.url}/hook",
        BACKEND_URL=service.base,
        PUBLISH_TOKEN=TOKEN,
        TMPDIR=str(tmp_path),
    )
    async with await PlainClient.open(service) as client:
        with alertmanager:
            add = ("amtool", f"--alertmanager.url=http://{address}", "alert", "add")
            alert = ("alertname=HighCPUUsage", "severity=warning", "instance=tests")
            summary = "--annotation=summary=The CPU is busy"
            await until(lambda: run(*add, *alert, summary).returncode == 0, "the alert is taken")
            reported = await client.expect(lambda got: is_about(got, "health_alert"))
            assert reported["data"]["message"] == "The CPU is busy"
            assert reported["data"]["source"] == "alertmanager"
            assert run(*add, *alert, summary, "--end=2020-01-01T00:00:00Z").returncode == 0
            over = await client.expect(lambda got: is_about(got, "health_recovery"))
            assert over["data"]["labels"] == reported["data"]["labels"]
            await until(lambda: len(receiver.posts) >= 2, "both at the webhook")
    assert [post["status"] for post in receiver.posts[:2]] == ["firing", "resolved"]


def is_about(message: dict[str, Any], event: str) -> bool:
    """Whether a message is of that alert; the collector sends such events as well."""
    return message["event"] == event and message["data"]["metric"] == "HighCPUUsage"
