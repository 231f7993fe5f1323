"""The compose file: accepted by Compose, and in step with the image, the settings and Prometheus."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
import yaml

from app.settings import Settings
from tests.server import ROOT

FOLDER = ROOT / "docker"
TEXT = (FOLDER / "compose.yaml").read_text("utf-8")
COMPOSE = yaml.safe_load(TEXT)
SERVICES = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
OURS = ("swin2sr", "swin2sr-gpu")


def compose():
    """The command that is Compose on this machine, and the file's text as this Compose knows it."""
    if shutil.which("docker"):
        found = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
        if found.returncode == 0:
            return ["docker", "compose"], TEXT
    if shutil.which("docker-compose"):  # Debian's, which does not know the project's name yet
        return ["docker-compose"], TEXT.replace("\nname: swin2sr\n", "\n")
    pytest.skip("neither docker compose nor docker-compose is installed")


def config(text, *options):
    """What Compose makes of a file."""
    command, _ = compose()
    whole = [*command, "--file", "-", "--project-directory", str(FOLDER), *options, "config"]
    return subprocess.run(whole, input=text, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_compose_accepts_it():
    """With and without the GPU; and the service would accept the settings that it makes."""
    _, text = compose()
    plain, gpu = config(text), config(text, "--profile", "gpu")
    assert (plain.returncode, gpu.returncode) == (0, 0), plain.stderr + gpu.stderr
    services = yaml.safe_load(gpu.stdout)["services"]
    assert services.keys() == {*OURS, "prometheus", "grafana"}
    for name in OURS:
        environment = services[name]["environment"].items()
        Settings(**{setting.removeprefix("SWIN2SR_").lower(): value for setting, value in environment})


@pytest.mark.slow
def test_compose_would_refuse_a_misspelt_field():
    """The check above can fail."""
    _, text = compose()
    refused = config(text.replace("read_only:", "read_onli:"))
    assert refused.returncode != 0
    assert "read_onli" in refused.stderr


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_has_limits_and_a_health_check(name):
    """And is open to this machine alone, starts again, and keeps its log small."""
    service = SERVICES[name]
    assert service["deploy"]["resources"]["limits"]["memory"]
    assert service["healthcheck"]["test"][0] == "CMD"
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert service["restart"] == "unless-stopped"
    assert service["logging"]["options"]["max-size"]


@pytest.mark.parametrize(("name", "stage"), [("swin2sr", "cpu"), ("swin2sr-gpu", "cuda")])
def test_the_service_runs_as_the_image_was_made(name, stage):
    """Built from its stage, on a read-only root, checked as the image says, and given the time to drain."""
    service = SERVICES[name]
    assert service["build"] == {"context": "..", "target": stage}
    assert f" AS {stage}\n" in DOCKERFILE
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["tmpfs"] == ["/tmp"]
    assert service["volumes"] == ["cache:/cache"]
    assert service["ports"][0].endswith(f":{Settings.model_fields['port'].default}")
    check = json.loads(re.search(r"^HEALTHCHECK .* CMD (.*)$", DOCKERFILE, re.M)[1])
    assert service["healthcheck"]["test"] == ["CMD", *check]
    grace = int(service["stop_grace_period"].removesuffix("s"))
    assert grace > Settings.model_fields["drain_timeout_ms"].default / 1000


def test_the_gpu_is_reserved():
    """And computing on the CPU in its place is refused."""
    gpu = SERVICES["swin2sr-gpu"]
    [device] = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert gpu["environment"]["SWIN2SR_DEVICE"] == "cuda"
    assert gpu["profiles"] == ["gpu"]


def test_what_is_mounted_is_there():
    """Every file and folder of this project that a container sees exists; every volume is declared."""
    for service in SERVICES.values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert (FOLDER / source).exists() if source.startswith(".") else source in COMPOSE["volumes"], volume


def test_prometheus_scrapes_the_services():
    """By their names in this file, at their port."""
    prometheus = yaml.safe_load((FOLDER / "prometheus" / "prometheus.yaml").read_text("utf-8"))
    [job] = prometheus["scrape_configs"]
    [discovery] = job["dns_sd_configs"]
    assert tuple(discovery["names"]) == OURS
    assert discovery["port"] == Settings.model_fields["port"].default
    mounts = dict(volume.split(":")[:2] for volume in SERVICES["prometheus"]["volumes"])
    for file in prometheus["rule_files"]:
        assert mounts[f"./prometheus/{file}"] == f"/etc/prometheus/{file}"


def test_grafana_finds_its_dashboard_and_prometheus():
    """At the places where they are mounted, under the names that they have here."""
    provisioning = FOLDER / "grafana" / "provisioning"
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text("utf-8"))["datasources"]
    assert source["url"] == f"http://prometheus:{SERVICES['prometheus']['ports'][0].rpartition(':')[2]}"
    [provider] = yaml.safe_load((provisioning / "dashboards" / "swin2sr.yaml").read_text("utf-8"))["providers"]
    mounts = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"])
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    assert mounts["./grafana/provisioning"] == "/etc/grafana/provisioning"
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (FOLDER / "grafana" / "dashboards" / home.removeprefix(f"{provider['options']['path']}/")).is_file()
