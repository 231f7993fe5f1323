"""The manifests: valid as Kubernetes' own schemas have it, and in step with the service's settings and the image."""

from __future__ import annotations

import re
import shutil
import subprocess

import kubernetes_validate
import pytest
import yaml

from app.main import create_app
from app.settings import Settings
from tests.server import ROOT

FOLDER = ROOT / "docker" / "kubernetes"
VERSION = "1.30"
"""The oldest of Kubernetes that these manifests are checked against; the newest that is known is the other."""

DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")


def documents(folder):
    """The manifests of a folder by kind, as in its files."""
    files = yaml.safe_load((folder / "kustomization.yaml").read_text("utf-8"))["resources"]
    found = [yaml.safe_load((folder / file).read_text("utf-8")) for file in files if file.endswith(".yaml")]
    return {document["kind"]: document for document in found}


def built(folder):
    """The manifests of a folder by kind, as kustomize makes them."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    text = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=True).stdout
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


BASE = documents(FOLDER / "base")
POD = BASE["Deployment"]["spec"]["template"]["spec"]
[CONTAINER] = POD["containers"]


def check(manifests):
    """Against the oldest and the newest of Kubernetes, unknown fields included."""
    assert manifests.keys() == {"Deployment", "Service", "PodDisruptionBudget"}
    for manifest in manifests.values():
        for version in (VERSION, kubernetes_validate.latest_version()):
            kubernetes_validate.validate(manifest, version, strict=True)


def test_the_base_is_valid():
    """As in its files."""
    check(BASE)


def test_a_misspelt_field_would_be_seen():
    """The check above is strict."""
    wrong = {**BASE["Service"], "spec": {**BASE["Service"]["spec"], "selecter": {}}}
    with pytest.raises(kubernetes_validate.ValidationError, match="selecter"):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


def test_the_overlay_for_gpus_is_valid():
    """Each pod has a GPU, cannot use another one, and has its own image."""
    manifests = built(FOLDER / "gpu")
    check(manifests)
    [container] = manifests["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert {"name": "SWIN2SR_DEVICE", "value": "cuda"} in container["env"]
    assert container["image"] == "swin2sr:cuda"
    assert container["readinessProbe"] == CONTAINER["readinessProbe"]


@pytest.mark.parametrize(("folder", "command"), [("base", "build -t"), ("gpu", "build --target cuda -t")])
def test_the_images_are_those_that_the_documented_builds_make(folder, command):
    """``docker build`` as the first lines of the Dockerfile write it makes the image that the manifests run."""
    [image] = yaml.safe_load((FOLDER / folder / "kustomization.yaml").read_text("utf-8"))["images"]
    tag = image["newName"] if image["newTag"] == "latest" else f"{image['newName']}:{image['newTag']}"
    assert f"docker {command} {tag} ." in DOCKERFILE
    assert image["name"] == CONTAINER["image"]
    assert CONTAINER["imagePullPolicy"] == "IfNotPresent"


def test_everything_finds_the_pods():
    """Deployment, Service and budget select the labels that the pods have."""
    labels = BASE["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert BASE["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert BASE["Service"]["spec"]["selector"] == labels
    assert BASE["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert BASE["PodDisruptionBudget"]["spec"]["maxUnavailable"] < BASE["Deployment"]["spec"]["replicas"]


def test_a_pod_has_the_time_to_drain():
    """The kubelet waits for longer than the service may take; the Service looks away before it stops listening."""
    settings = Settings(**{each["name"].removeprefix("SWIN2SR_").lower(): each["value"] for each in CONTAINER["env"]})
    assert POD["terminationGracePeriodSeconds"] > settings.drain_timeout_ms / 1000
    probe = CONTAINER["readinessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] + probe["timeoutSeconds"] < settings.drain_delay_ms / 1000


def test_the_probes_ask_what_the_service_answers():
    """Three questions of their own, at addresses that exist, at the port that the image exposes."""
    probes = {name: CONTAINER[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    paths = {name: probe["path"] for name, probe in probes.items()}
    assert paths == {"startup": "/health/startup", "liveness": "/health/live", "readiness": "/health/ready"}
    assert set(paths.values()) <= create_app(Settings(variants="x2", device="cpu")).openapi()["paths"].keys()
    assert {probe["port"] for probe in probes.values()} == {CONTAINER["ports"][0]["name"]}
    assert BASE["Service"]["spec"]["ports"][0]["targetPort"] == CONTAINER["ports"][0]["name"]
    assert re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, re.M) == [str(CONTAINER["ports"][0]["containerPort"])]


def test_the_container_can_do_nothing_but_serve():
    """As the image's user, without rights, on a read-only root; what the image writes to is mounted."""
    user, group = map(int, re.search(r"^USER (\d+):(\d+)$", DOCKERFILE, re.M).groups())
    assert (POD["securityContext"]["runAsUser"], POD["securityContext"]["runAsGroup"]) == (user, group)
    assert POD["securityContext"]["runAsNonRoot"]
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {mount["mountPath"] for mount in CONTAINER["volumeMounts"]} == {"/cache", "/tmp"}
    assert {mount["name"] for mount in CONTAINER["volumeMounts"]} == {volume["name"] for volume in POD["volumes"]}


def test_the_cluster_sets_no_settings_by_accident():
    """A Service named swin2sr would otherwise give its pods ``SWIN2SR_PORT=tcp://...``, which is not a port."""
    assert BASE["Service"]["metadata"]["name"] == "swin2sr"
    assert POD["enableServiceLinks"] is False
    with pytest.raises(ValueError, match="port"):
        Settings(port="tcp://10.0.0.1:80")
