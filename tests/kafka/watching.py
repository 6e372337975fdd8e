"""A real Prometheus that scrapes workers by the project's own rules, and what panels and rules ask it for."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import promql_parser
import yaml

from export.data.cache import debian
from tests.kafka.harness import eventually

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "eddy.json"
RULES = DEPLOY / "prometheus" / "rules.yml"
CONFIG = DEPLOY / "prometheus" / "prometheus.yml"
ALL = {"$model": ".*", "$version": ".*", "$__rate_interval": "1m"}
"""What Grafana puts in for its variables where everything is chosen."""


def tool(name: str) -> str:
    """``prometheus`` or ``promtool``: the machine's, or Debian's package in the cache."""
    return shutil.which(name) or str(debian("prometheus") / "usr" / "bin" / name)


class Asked(NamedTuple):
    """One expression, and who asks it."""

    by: str
    expression: str


def panels() -> list[Asked]:
    dashboard = json.loads(DASHBOARD.read_text())
    return [
        Asked(f"panel {panel['title']!r}", _filled(target["expr"]))
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    ]


def rules() -> list[Asked]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [Asked(f"rule {r.get('alert', r.get('record'))}", r["expr"]) for g in groups for r in g["rules"]]


def _filled(expression: str) -> str:
    for variable, value in ALL.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression, f"a variable that the test does not know: {expression}"
    return expression


class Wanted(NamedTuple):
    """A series that an expression selects, and labels that it groups or joins by."""

    selector: str
    name: str
    labels: frozenset[str]


def wanted(expression: str) -> list[Wanted]:
    """Every selector in it, each with the labels that the aggregations around it keep."""
    return list(_walk(promql_parser.parse(expression), frozenset()))


def _walk(node: Any, labels: frozenset[str]) -> Iterator[Wanted]:
    if isinstance(node, promql_parser.VectorSelector):
        matched = {matcher.name for matcher in node.matchers.matchers}
        yield Wanted(str(node), node.name, labels | matched)
    elif isinstance(node, promql_parser.AggregateExpr):
        kept = frozenset(node.modifier.labels) if node.modifier is not None else frozenset()
        yield from _walk(node.expr, labels | kept)
    elif isinstance(node, promql_parser.BinaryExpr):
        yield from _walk(node.lhs, labels)
        yield from _walk(node.rhs, labels)
    elif isinstance(node, promql_parser.Call):
        for argument in node.args:
            yield from _walk(argument, labels)
    elif isinstance(node, promql_parser.MatrixSelector):
        yield from _walk(node.vector_selector, labels)
    elif isinstance(node, (promql_parser.ParenExpr, promql_parser.UnaryExpr, promql_parser.SubqueryExpr)):
        yield from _walk(node.expr, labels)
    else:
        assert isinstance(node, (promql_parser.NumberLiteral, promql_parser.StringLiteral)), f"unknown: {node!r}"


class Prometheus:
    """``deploy/prometheus``, with the targets that ``watch`` names in place of the compose file's, every second."""

    def __init__(self, folder: Path) -> None:
        self._targets = folder / "targets.json"
        self._targets.write_text("[]")
        config = yaml.safe_load(CONFIG.read_text())
        config["global"] |= {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(RULES)]
        (job,) = config["scrape_configs"]
        del job["dns_sd_configs"]
        job["file_sd_configs"] = [{"files": [str(self._targets)], "refresh_interval": "1s"}]
        file = folder / "prometheus.yml"
        file.write_text(yaml.safe_dump(config))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._url = f"http://127.0.0.1:{port}"
        self._log = (folder / "prometheus.log").open("w+")
        self._process = subprocess.Popen(
            [
                *(tool("prometheus"), f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}"),
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        eventually(self._is_ready, 30, "prometheus is ready")

    def _is_ready(self) -> bool:
        if self._process.poll() is not None:
            self._log.seek(0)
            raise AssertionError(f"prometheus ended: {self._log.read()[-2000:]}")
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready", timeout=5) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    def watch(self, pages: Iterable[str]) -> None:
        """Scrapes these from now on (``http://host:port``)."""
        beside = self._targets.with_suffix(".new")
        beside.write_text(json.dumps([{"targets": [page.removeprefix("http://") for page in pages]}]))
        beside.rename(self._targets)

    def ask(self, expression: str) -> list[dict[str, Any]]:
        """The result of an instant query: ``metric`` and ``value`` of each series."""
        answer = self._get(f"query?{urllib.parse.urlencode({'query': expression})}")
        return list(answer["result"])

    def number(self, expression: str) -> float | None:
        """The largest value of its result, None where it has none."""
        found = [float(series["value"][1]) for series in self.ask(expression)]
        return max(found) if found else None

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def _get(self, path: str) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self._url}/api/v1/{path}", timeout=30) as reply:
            answer = json.load(reply)
        assert answer["status"] == "success", answer
        data: dict[str, Any] = answer["data"]
        return data

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        self._log.close()


@contextmanager
def prometheus(folder: Path) -> Iterator[Prometheus]:
    """One in this folder, while the block lasts."""
    folder.mkdir(parents=True, exist_ok=True)
    it = Prometheus(folder)
    try:
        yield it
    finally:
        it.stop()
