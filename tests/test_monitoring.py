"""Prometheus and Grafana as the project configures them: real rules, a real scrape, queries that find something."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.scripted import PATIENCE, ScriptedUpscaler
from tests.scripted_server import ScriptedServer
from tests.server import ROOT, free_ports
from tests.service import noise, png, scripted_app

FOLDER = ROOT / "docker" / "prometheus"
RULES = yaml.safe_load((FOLDER / "rules.yaml").read_text("utf-8"))["groups"][0]["rules"]
DASHBOARD = json.loads((ROOT / "docker" / "grafana" / "dashboards" / "swin2sr.json").read_text("utf-8"))
PANELS = DASHBOARD["panels"]
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
PNG = {"content-type": "image/png"}
SCALED_OBJECT = ROOT / "docker" / "kubernetes" / "components" / "keda" / "scaledobject.yaml"

with_prometheus = pytest.mark.skipif(
    not (shutil.which("promtool") and shutil.which("prometheus")), reason="Prometheus is not installed"
)


def promtool(*arguments):
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)


def query_of(expression):
    """A dashboard's query as Grafana sends it, over all processes."""
    return expression.replace("$instance", ".*").replace("$__rate_interval", "1m")


@with_prometheus
def test_prometheus_accepts_its_configuration():
    """With the rules."""
    result = promtool("check", "config", str(FOLDER / "prometheus.yaml"))
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
@with_prometheus
def test_the_alerts_fire_when_they_should():
    """And are silent while all is well; the cases are in ``docker/prometheus/tests``."""
    result = promtool("test", "rules", *map(str, sorted((FOLDER / "tests").iterdir())))
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_alert_is_tested_both_ways():
    """There is a case in which it fires, and one in which it does not."""
    cases = yaml.safe_load((FOLDER / "tests" / "rules.yaml").read_text("utf-8"))["tests"]
    tested = {(each["alertname"], bool(each["exp_alerts"])) for case in cases for each in case["alert_rule_test"]}
    assert tested == {(rule["alert"], fires) for rule in RULES for fires in (True, False)}


def test_every_alert_says_what_to_do():
    """The operations guide has a row for each, and for no other."""
    guide = (ROOT / "docs" / "operations.md").read_text("utf-8")
    assert re.findall(r"^\| `(Swin2sr\w+)` \|", guide, re.M) == [rule["alert"] for rule in RULES]


@with_prometheus
def test_the_dashboards_queries_are_queries(tmp_path):
    """Each is accepted where a rule's expression stands."""
    rules = [{"record": f"query:{number}", "expr": query_of(expr)} for number, (_, expr) in enumerate(QUERIES)]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    result = promtool("check", "rules", str(tmp_path / "rules.yaml"))
    assert result.returncode == 0, result.stdout + result.stderr


def test_rules_and_dashboard_name_metrics_that_exist(tmp_path):
    """Every name in them is one of ``GET /metrics``, with the suffixes of its type."""
    app = scripted_app(tmp_path, lightweight_x2=ScriptedUpscaler())
    suffixes = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    exposition = app.state.service.metrics.exposition().decode()
    exist = {
        f"{family.name}{suffix}"
        for family in text_string_to_metric_families(exposition)
        for suffix in suffixes[family.type]
    }
    cases = (FOLDER / "tests" / "rules.yaml").read_text("utf-8")
    variables = json.dumps(DASHBOARD["templating"])
    texts = [*(expr for _, expr in QUERIES), *(rule["expr"] for rule in RULES), cases, variables]
    named = {name for text in texts for name in re.findall(r"\bswin2sr_\w+", text)}
    assert named - exist == set()


def test_the_dashboard_shows_what_matters():
    """Throughput, latency by stage, queue, batch sizes, rejections, readiness, memory; from the provisioned source."""
    assert {panel["title"] for panel in PANELS} >= {
        *("Throughput", "Latency by stage, 95 %", "Queue", "Tiles in a batch", "Pixels in a batch"),
        *("Rejections", "Readiness", "Memory"),
    }
    file = ROOT / "docker" / "grafana" / "provisioning" / "datasources" / "prometheus.yaml"
    [source] = yaml.safe_load(file.read_text("utf-8"))["datasources"]
    assert {part["datasource"]["uid"] for panel in PANELS for part in (panel, *panel["targets"])} == {source["uid"]}
    places = [
        (x, y)
        for place in (panel["gridPos"] for panel in PANELS)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(places) == len(set(places))  # no panel lies on another
    assert max(x for x, _ in places) < 24


class Prometheus:
    """Debian's Prometheus with the project's configuration, looking at one process often, until the end of a block.

    Args:
        folder: for its configuration and data.
        target: host and port of the process, in place of Compose's names.
    """

    def __init__(self, folder, target):
        configuration = yaml.safe_load((FOLDER / "prometheus.yaml").read_text("utf-8"))
        [job] = configuration["scrape_configs"]
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": [target]}]
        configuration["global"] = {"scrape_interval": "200ms", "evaluation_interval": "200ms"}
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(configuration))
        shutil.copy(FOLDER / "rules.yaml", folder)
        [port] = free_ports(1)
        self._command = [
            "prometheus",
            f"--config.file={folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
        ]
        self._http = httpx.Client(
            base_url=f"http://127.0.0.1:{port}/api/v1", transport=httpx.HTTPTransport(retries=8), timeout=PATIENCE
        )

    def __enter__(self):
        self._process = subprocess.Popen(self._command)
        return self

    def __exit__(self, *_error):
        self._process.terminate()
        self._process.wait(PATIENCE)
        self._http.close()

    def get(self, path, **parameters):
        """What the API says at a path."""
        answer = self._http.get(path, params=parameters).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def values(self, expression):
        """What a query finds now."""
        return [float(each["value"][1]) for each in self.get("/query", query=expression)["result"]]

    def wait_for(self, expression):
        """Ask until there is an answer: a scrape came."""
        while not self.values(expression):
            assert self._process.poll() is None


@pytest.mark.slow
@with_prometheus
def test_prometheus_scrapes_the_service_and_the_dashboard_shows_it(tmp_path):
    """A real Prometheus finds the process up; each query of the dashboard finds something, each rule is evaluated."""
    with ScriptedServer(seconds=100, max_queue_requests=1) as server:

        def send(number):
            """Answers after a round of requests, one more than can be run and wait."""
            body = png(noise(64, 64, seed=number))
            with ThreadPoolExecutor(8) as pool:
                url = f"{server.url}/v1/upscale"
                work = [pool.submit(httpx.post, url, content=body, headers=PNG, timeout=60) for _ in range(8)]
                return [each.result().status_code for each in work]

        with Prometheus(tmp_path, server.url.removeprefix("http://")) as prometheus:
            seen = 0
            for number in range(2):  # a rate needs two looks
                statuses = send(number)
                assert set(statuses) == {200, 429}
                seen += len(statuses)
                prometheus.wait_for(f"sum(swin2sr_requests_total) == {seen}")
            assert prometheus.values('up{job="swin2sr"}') == [1]
            assert prometheus.values("sum(swin2sr_rejected_total)")[0] > 0
            empty = [title for title, expr in QUERIES if not prometheus.values(query_of(expr))]
            assert empty == []
            scaled = yaml.safe_load(SCALED_OBJECT.read_text("utf-8"))
            assert prometheus.values(scaled["spec"]["triggers"][0]["metadata"]["query"])
            [group] = prometheus.get("/rules")["groups"]
            assert {(rule["name"], rule["health"]) for rule in group["rules"]} == {
                (rule["alert"], "ok") for rule in RULES
            }
            firing = {alert["labels"]["alertname"] for alert in prometheus.get("/alerts")["alerts"]}
            assert not firing & {"Swin2srDown", "Swin2srGone", "Swin2srNotReady"}
            server.stop()
            prometheus.wait_for('up{job="swin2sr"} == 0')
            prometheus.wait_for('ALERTS{alertname="Swin2srDown", alertstate="pending"}')
