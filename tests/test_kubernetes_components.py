"""The components for a cluster: each builds on the base, is valid, and is in step with the service."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import jsonschema
import kubernetes_validate
import pytest
import yaml
from simulate_autoscaling import draw, simulate

from app.settings import Settings
from tests.server import ROOT

FOLDER = ROOT / "docker" / "kubernetes"
COMPONENTS = sorted(path.name for path in (FOLDER / "components").iterdir())
LABELS = {"app.kubernetes.io/name": "swin2sr"}


def strict(required, **properties):
    """The schema of an object with these members and no others."""
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


TEXT, NUMBER, ANY = {"type": "string"}, {"type": "integer", "minimum": 0}, {}
TRIGGER = strict(
    ["type", "metadata"],
    type={"const": "prometheus"},
    metricType={"enum": ["AverageValue", "Value"]},
    metadata=strict(["serverAddress", "query", "threshold"], serverAddress=TEXT, query=TEXT, threshold=TEXT),
)
SCHEMAS = {
    "ScaledObject": strict(
        ["scaleTargetRef", "triggers"],
        scaleTargetRef=strict(["name"], name=TEXT),
        minReplicaCount=NUMBER,
        maxReplicaCount=NUMBER,
        pollingInterval=NUMBER,
        cooldownPeriod=NUMBER,
        advanced=strict([], horizontalPodAutoscalerConfig=strict([], behavior=ANY)),
        triggers={"type": "array", "minItems": 1, "items": TRIGGER},
    ),
    "ServiceMonitor": strict(
        ["selector", "endpoints"],
        selector=strict(["matchLabels"], matchLabels=ANY),
        endpoints={"type": "array", "items": strict(["port"], port=TEXT, path=TEXT, interval=TEXT)},
    ),
}
"""The members of the custom resources that are used here, as KEDA and the Prometheus Operator document them.

``make prove`` compares the manifests with the types of both operators.
"""

GROUPS = {"ScaledObject": "keda.sh/v1alpha1", "ServiceMonitor": "monitoring.coreos.com/v1"}


def build(folder):
    """The manifests of a folder by kind, as kustomize makes them."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    command = ["kubectl", "kustomize", folder, "--load-restrictor", "LoadRestrictionsNone"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


def check(manifest):
    """Against Kubernetes' own schemas, or ours of a custom resource; unknown fields are refused."""
    if manifest["kind"] in SCHEMAS:
        assert manifest["apiVersion"] == GROUPS[manifest["kind"]]
        jsonschema.validate(manifest["spec"], SCHEMAS[manifest["kind"]])
    else:
        for version in ("1.30", kubernetes_validate.latest_version()):
            kubernetes_validate.validate(manifest, version, strict=True)


@pytest.fixture(scope="module")
def production():
    """Everything together."""
    return build(FOLDER / "production")


@pytest.mark.parametrize("name", COMPONENTS)
def test_each_component_builds_alone(tmp_path, name):
    """On the base, and every manifest is valid."""
    shutil.copytree(FOLDER, tmp_path / "kubernetes")
    overlay = tmp_path / "kubernetes" / "one"
    overlay.mkdir()
    lines = {"resources": ["../base"], "components": [f"../components/{name}"]}
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(lines))
    manifests = build(overlay)
    assert manifests.keys() >= {"Deployment", "Service"}
    for manifest in manifests.values():
        check(manifest)


def test_all_components_build_together(production):
    """The overlay names each of them, and every manifest is valid."""
    overlay = yaml.safe_load((FOLDER / "production" / "kustomization.yaml").read_text("utf-8"))
    assert sorted(name.rpartition("/")[2] for name in overlay["components"]) == COMPONENTS
    for manifest in production.values():
        check(manifest)


def test_a_misspelt_field_would_be_seen(production):
    """Of custom resources too."""
    wrong = {**production["ScaledObject"], "spec": {**production["ScaledObject"]["spec"], "minReplicas": 1}}
    with pytest.raises(jsonschema.ValidationError, match="minReplicas"):
        check(wrong)


NPM = ("@kubernetes-models/keda@2.0.0", "@kubernetes-models/prometheus-operator@6.0.0", "typescript@5.9.3")
"""Types that are generated from the sources of KEDA and the Prometheus Operator, and a compiler that checks them."""
TYPES = {
    "ScaledObject": "@kubernetes-models/keda/keda.sh/v1alpha1/ScaledObject",
    "ServiceMonitor": "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/ServiceMonitor",
}


@pytest.mark.long
def test_custom_resources_have_the_types_of_their_operators(production, tmp_path):
    """A TypeScript compiler accepts both manifests as literals, and refuses unknown fields and wrong types."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    install = ["npm", "install", "--silent", "--no-audit", "--no-fund", *NPM]
    subprocess.run(install, cwd=tmp_path, check=True, timeout=300)

    def compiled(kind, **changes):
        manifest = {**production[kind], "spec": {**production[kind]["spec"], **changes}}
        source = f'import {{ I{kind} }} from "{TYPES[kind]}";\nconst it: I{kind} = {json.dumps(manifest)};\n'
        (tmp_path / "check.ts").write_text(source)
        options = ["--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext", "--target", "es2022"]
        command = ["npx", "tsc", *options, "check.ts"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout

    assert compiled("ScaledObject") == compiled("ServiceMonitor") == ""
    assert "minReplicas" in compiled("ScaledObject", minReplicas=1)
    assert "'string' is not assignable to type 'number'" in compiled("ScaledObject", pollingInterval="fifteen")
    assert "endpoint" in compiled("ServiceMonitor", endpoint=[])


def test_the_autoscaler_alone_decides_how_many(production):
    """The Deployment states no number that an apply would set back, and the target is the Deployment."""
    assert "replicas" not in production["Deployment"]["spec"]
    scaled = production["ScaledObject"]["spec"]
    assert scaled["scaleTargetRef"]["name"] == production["Deployment"]["metadata"]["name"]
    assert scaled["minReplicaCount"] > production["PodDisruptionBudget"]["spec"]["maxUnavailable"]


def test_scaling_down_waits_as_long_as_a_pod_drains(production):
    """A pod that goes may work for DRAIN_TIMEOUT_MS."""
    behavior = production["ScaledObject"]["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    drain = Settings.model_fields["drain_timeout_ms"].default / 1000
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] >= drain


def test_everything_selects_the_pods(production):
    """Policy, monitor, spread and Ingress mean this service."""
    assert production["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == LABELS
    assert production["ServiceMonitor"]["spec"]["selector"]["matchLabels"] == LABELS
    assert LABELS.items() <= production["Service"]["metadata"]["labels"].items()
    for constraint in production["Deployment"]["spec"]["template"]["spec"]["topologySpreadConstraints"]:
        assert constraint["labelSelector"]["matchLabels"] == LABELS
    [port] = production["Service"]["spec"]["ports"]
    [endpoint] = production["ServiceMonitor"]["spec"]["endpoints"]
    [rule] = production["Ingress"]["spec"]["rules"]
    [path] = rule["http"]["paths"]
    assert endpoint["port"] == port["name"] == path["backend"]["service"]["port"]["name"]
    assert path["backend"]["service"]["name"] == production["Service"]["metadata"]["name"]


def test_the_ingress_lets_the_service_decide():
    """It neither refuses large bodies nor times out before the service does."""
    ingress = yaml.safe_load((FOLDER / "components" / "ingress" / "ingress.yaml").read_text("utf-8"))
    prefix = "nginx.ingress.kubernetes.io/"
    values = {name.removeprefix(prefix): value for name, value in ingress["metadata"]["annotations"].items()}
    assert values["proxy-body-size"] == "0"
    assert int(values["proxy-read-timeout"]) > Settings.model_fields["request_timeout_ms"].default / 1000
    assert values["proxy-buffering"] == values["proxy-request-buffering"] == "off"


def test_the_service_accepts_the_secrets(production, tmp_path):
    """The files of the Secret, at the paths that the settings name, hold keys and a token that it takes."""
    secret = production["Secret"]
    for name, text in secret["stringData"].items():
        (tmp_path / name).write_text(text)
    [container] = production["Deployment"]["spec"]["template"]["spec"]["containers"]
    [mount] = [mount for mount in container["volumeMounts"] if mount["name"] == "secrets"]
    files = {each["name"]: each["value"] for each in container["env"] if each["name"].endswith("_FILE")}
    names = {name: value.removeprefix(f"{mount['mountPath']}/") for name, value in files.items()}
    settings = Settings(**{name.removeprefix("SWIN2SR_").lower(): str(tmp_path / file) for name, file in names.items()})
    assert list(settings.keys) == ["photos", "archive"]
    assert settings.admin_secret is not None
    [volume] = [each for each in production["Deployment"]["spec"]["template"]["spec"]["volumes"] if "secret" in each]
    assert volume["secret"]["secretName"] == secret["metadata"]["name"]


def day(seconds):
    """A quiet day in which a replica is content with so many seconds of waiting work."""
    speed = 300_000
    return simulate(target=seconds * speed, speed=speed, busiest=1.0, pixels=250_000, least=2, most=20)


@pytest.mark.slow
def test_the_simulation_shows_what_the_target_trades():
    """A lower target makes more replicas and shorter waits; every request is served; the drawing is SVG."""
    low, high = day(1), day(32)
    assert len(low.waits) == len(high.waits) > 10_000
    assert low.wait(0.99) <= high.wait(0.99)
    assert low.pod_hours >= high.pod_hours >= 2 * 23.9
    assert max(low.replicas) <= 20
    assert re.match(r"<svg .*</svg>\n$", draw(low), re.S)
