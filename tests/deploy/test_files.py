"""The files under deploy/ fit each other, the code and the tools that will read them."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.grafana import dashboard
from services.jars import KAFKA_VERSION
from services.settings import RunConfig
from tests.kafka.watching import CONFIG, DASHBOARD, DEPLOY, RULES, panels, rules, tool

COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]


def test_the_dashboard_is_what_its_code_makes() -> None:
    assert DASHBOARD.read_text() == dashboard.text(), "run python deploy/grafana/dashboard.py"


def test_panels_do_not_lie_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard.dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert all(x < 24 for x, _ in cells)
        taken |= cells


@pytest.mark.parametrize(
    "words",
    [
        ("check", "rules", str(RULES)),
        ("check", "config", "--syntax-only", str(CONFIG)),
        ("test", "rules", str(RULES.with_suffix(".test.yml"))),
    ],
    ids=["rules", "config", "alerts"],
)
def test_promtool_finds_nothing_wrong(words: tuple[str, ...]) -> None:
    done = subprocess.run([tool("promtool"), *words], check=False, capture_output=True, text=True, cwd=RULES.parent)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_been_seen_firing_and_says_what_to_do() -> None:
    tested = RULES.with_suffix(".test.yml").read_text()
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                assert rule["alert"] in tested
                assert rule["labels"]["severity"] in ("page", "ticket")
                assert {"summary", "action"} <= rule["annotations"].keys()


def test_no_panel_and_no_rule_asks_for_a_stream() -> None:
    for by, expression in [*panels(), *rules()]:
        assert not re.search(r"\b(stream|key)\b", expression), by


def test_what_is_mounted_is_there() -> None:
    for name, service in SERVICES.items():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), f"{name}: {source}"
            else:
                assert source in COMPOSE["volumes"], f"{name}: {source}"
        for other in service.get("depends_on", ()):
            assert other in SERVICES, name


def test_the_workers_settings_exist() -> None:
    known = {f"EDDY_{field.name.upper()}" for field in dataclasses.fields(RunConfig)}
    assert SERVICES["worker"]["environment"].keys() <= known
    image = re.findall(r"\b(EDDY_\w+)=", (DEPLOY / "Dockerfile").read_text())
    assert image
    assert set(image) <= known


def test_everything_is_at_a_version() -> None:
    """The broker at the one that the tests run against."""
    images = {name: s["image"] for name, s in SERVICES.items() if "build" not in s}
    assert images["kafka"] == f"apache/kafka:{KAFKA_VERSION}"
    assert all(re.search(r":v?\d+\.\d+\.\d+$", image) for image in images.values()), images


def test_prometheus_scrapes_the_port_that_the_image_opens() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    port = yaml.safe_load(CONFIG.read_text())["scrape_configs"][0]["dns_sd_configs"][0]["port"]
    assert f"EXPOSE {port}\n" in dockerfile
    assert f"EDDY_HTTP_PORT={port} " in dockerfile
    assert yaml.safe_load(CONFIG.read_text())["scrape_configs"][0]["dns_sd_configs"][0]["names"] == ["worker"]


def test_the_dashboard_lies_where_grafana_looks_for_it() -> None:
    provider = DEPLOY / "grafana" / "provisioning" / "dashboards" / "eddy.yml"
    folder = yaml.safe_load(provider.read_text())["providers"][0]["options"]["path"]
    assert f"./grafana/dashboards:{folder}:ro" in SERVICES["grafana"]["volumes"]
    assert (
        SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == f"{folder}/{DASHBOARD.name}"
    )
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"][0]
    asked = {
        target["datasource"]["uid"] for panel in dashboard.dashboard()["panels"] for target in panel.get("targets", ())
    }
    assert asked == {source["uid"]}


def test_the_install_script_takes_what_the_image_copies() -> None:
    copied = {
        word
        for line in (DEPLOY / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    }
    for name in copied:
        assert (Path(DEPLOY.parent) / name).exists(), name


def test_the_image_installs_every_dependency_at_a_version() -> None:
    """`make constraints` was run after the last change of them."""
    pinned = {line.split("==")[0].lower() for line in (DEPLOY / "constraints.txt").read_text().splitlines()[1:]}
    needed = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.split(r"[\[<>=~!]", line)[0].replace("-", "_") for line in needed}
    assert names <= {name.replace("-", "_") for name in pinned}
