"""What runs can be asked: on the command line, in the log, in the health answer and in the metrics."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

import model
from app import build_info
from app.variants.loaded_model import count_parameters, weights_digest
from app.version import service_version, torch_version
from model.kernels.library import kernel_level
from model.official.fetch import file_digest
from model.variants import embedded_path
from tests.server import ROOT, SERVE, ServerProcess


@pytest.mark.slow
def test_the_command_line_prints_the_version():
    """Also without importing PyTorch, which takes seconds."""
    program = (
        "import sys; sys.argv = ['swin2sr', '--version']\n"
        "from app.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    print(end.code, 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [f"swin2sr-serve {service_version()}, torch {torch_version()}", "0 False"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A real service with an own file under the name of an embedded variant, and one of its own name."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copy(embedded_path("small-x4"), folder / "small-x2.safetensors")
    shutil.copy(embedded_path("small-x2"), folder / "mine.safetensors")
    with ServerProcess(fork=SERVE, variants="mine,small-x4", model_dir=str(folder)) as running:
        yield running


def labels_of(server, name):
    families = text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text)
    return {family.name: [sample.labels for sample in family.samples] for family in families}[name]


@pytest.mark.slow
def test_the_metrics_say_what_runs(server):
    """One series with version, PyTorch, kernel and precision, and the process's own metrics."""
    [labels] = labels_of(server, "swin2sr_build_info")
    variants = httpx.get(f"{server.url}/v1/variants").json()["variants"]
    used = {each["precision"] for each in variants if each["state"] == "ready"}
    assert used <= {"exact", "high"}
    assert labels == {
        "version": service_version(),
        "torch": torch_version(),
        "kernel": kernel_level(),
        "precision": ",".join(sorted(used)),
    }
    assert {"process_resident_memory_bytes", "process_open_fds", "process_cpu_seconds_total"} <= {
        line.split()[0] for line in httpx.get(f"{server.url}/metrics").text.splitlines()
    }


def test_ready_says_the_version(server):
    """Beside the status."""
    assert httpx.get(f"{server.url}/health/ready").json() == {"status": "ok", "version": service_version()}


def test_the_first_line_of_the_log_says_what_runs(server):
    """Versions and the level of the kernel."""
    first = server.output[0]
    assert f"swin2sr-serve {service_version()}, torch {torch_version()}, kernel {kernel_level()}" in first


def test_loaded_weights_show_digest_and_parameters(server):
    """Of own and of embedded weights: the file's SHA-256, and how many values it has."""
    variants = {each["name"]: each for each in httpx.get(f"{server.url}/v1/variants").json()["variants"]}
    for name, file in (("mine", "small-x2"), ("small-x4", "small-x4")):
        assert variants[name]["digest"] == file_digest(embedded_path(file))
        assert variants[name]["parameters"] > 10_000


def test_an_own_file_that_overrides_another_is_reported(server):
    """In the log and in the list; own names replace nothing."""
    variants = {each["name"]: each for each in httpx.get(f"{server.url}/v1/variants").json()["variants"]}
    assert {name: each["replaces"] for name, each in variants.items() if each["replaces"]} == {"small-x2": "embedded"}
    assert variants["small-x2"]["parameters"] is None  # not loaded; nothing is claimed of a file that was not read
    assert re.search(
        r"WARNING .*small-x2\.safetensors replaces the embedded variant small-x2", "\n".join(server.output)
    )


@pytest.fixture
def installation(tmp_path):
    """A copy of the source tree's packages without a kernel, and a command that runs Python in it."""
    for package in ("app", "model"):
        shutil.copytree(
            Path(model.__file__).parents[1] / package, tmp_path / package, ignore=shutil.ignore_patterns("*.so")
        )

    def run(program):
        env = {**os.environ, "PYTHONPATH": str(tmp_path)}
        return subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
        ).stderr

    return tmp_path, run


PROGRAM = (
    "import sys; sys.path.insert(0, '')\n"
    "from app import build_info, logs; logs.configure('text')\n"
    "build_info.log_start(on_cpu=True); build_info.log_start(on_cpu=False); logs.finish()"
)


def test_a_missing_kernel_is_a_warning_on_a_cpu(installation):
    """It says what to do; on a GPU the kernel does not matter."""
    _, run = installation
    on_cpu, on_gpu = run(PROGRAM).splitlines()
    assert "WARNING" in on_cpu
    assert on_cpu.endswith("no compiled kernel, about 4 times slower; install a C compiler and reinstall")
    assert "INFO" in on_gpu
    assert on_gpu.endswith("kernel none")


def test_a_processor_without_avx2_and_a_missing_kernel_are_distinguished(monkeypatch, caplog):
    """A compiler would not help there."""
    monkeypatch.setattr(build_info, "kernel_level", lambda: "none")
    monkeypatch.setattr(build_info, "is_kernel_installed", lambda: True)
    with caplog.at_level(logging.WARNING):
        build_info.log_start(on_cpu=True)
    assert "it needs a processor with AVX2" in caplog.text


def test_the_digest_of_a_folder_is_that_of_its_weights(tmp_path):
    """A Hugging Face folder has one file of weights; a folder without one has no digest."""
    assert weights_digest(tmp_path) is None
    (tmp_path / "pytorch_model.bin").write_bytes(b"weights")
    assert weights_digest(tmp_path) == file_digest(tmp_path / "pytorch_model.bin")


def test_parameters_are_counted_of_networks_only():
    """Something else in the model's place has no number."""
    assert count_parameters(object()) is None
