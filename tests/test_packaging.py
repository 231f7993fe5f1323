"""What is released: the contents of sdist and wheels, their tags, and that a built wheel needs no compiler."""

from __future__ import annotations

import email
import os
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from app.version import service_version, torch_version
from model.kernels import library
from tests.server import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

WEIGHTS = {
    f"model/weights/{name}.safetensors" for name in ("small-x2", "small-x4", "small-jpeg", "small-compressed-x4")
}


def checkout(folder):
    """A copy of the source tree without ignored files: a fresh clone."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    for name in filter(None, names):
        source = ROOT / os.fsdecode(name)
        if source.is_file() and not os.fsdecode(name).startswith("tests/golden"):
            target = folder / os.fsdecode(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    return folder


def build(source, kind, folder, **environment):
    """Build an ``sdist`` or a ``wheel`` with the project's build backend, and return the file."""
    program = f"import setuptools.build_meta as backend; backend.build_{kind}({str(folder)!r})"
    env = {**os.environ, **environment}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=source, env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    [file] = Path(folder).iterdir()
    return file


def arm_wheel(folder):
    """The wheel for Linux on aarch64, built here from a fresh clone with a cross compiler."""
    (folder / "wheels").mkdir()
    compiler = "aarch64-linux-gnu-gcc"
    environment = {"CC": compiler, "LDSHARED": f"{compiler} -shared", "_PYTHON_HOST_PLATFORM": "linux-aarch64"}
    return build(checkout(folder / "clone"), "wheel", folder / "wheels", SWIN2SR_REQUIRE_KERNEL="1", **environment)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The source distribution of a fresh clone."""
    return build(checkout(tmp_path_factory.mktemp("clone")), "sdist", tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def unpacked(sdist, tmp_path_factory):
    """The source distribution's folder."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    [inside] = folder.iterdir()
    return inside


def committed(*patterns):
    """Names of files in the source tree that match."""
    return {path.relative_to(ROOT).as_posix() for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()}


def test_the_sdist_has_what_building_needs_and_no_more(unpacked):
    """Every module, the kernel's sources, weights, the page, licences and the changelog; no tests and nothing built."""
    files = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    modules = committed("app/**/*.py", "model/**/*.py") - committed("app/thin/*")
    kernel = committed("model/kernels/*.[ch]")
    others = {"pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE", "CHANGELOG.md", "model/py.typed"}
    assert modules | kernel | others | WEIGHTS | committed("app/web/*", "app/cli/*.html") <= files
    assert not [name for name in files if name.startswith("tests/") or name.endswith((".so", ".pyc"))]


@pytest.mark.slow
def test_a_wheel_without_a_compiler_says_that_it_has_no_kernel(unpacked, tmp_path):
    """It builds from the sdist, is tagged for every platform, and holds modules, weights, page and licences."""
    file = build(unpacked, "wheel", tmp_path, CC="false")
    assert file.name == f"swin2sr_serve-{PYPROJECT['version']}-py3-none-any.whl"
    with zipfile.ZipFile(file) as archive:
        names = set(archive.namelist())
        [metadata] = [archive.read(name).decode() for name in names if name.endswith("/METADATA")]
        [entry_points] = [archive.read(name).decode() for name in names if name.endswith("/entry_points.txt")]
    assert committed("app/**/*.py", "model/**/*.py", "app/web/*", "app/cli/*.html") - committed("app/thin/*") <= names
    assert names >= WEIGHTS
    assert {name.split("/")[0] for name in names} == {"app", "model", f"swin2sr_serve-{PYPROJECT['version']}.dist-info"}
    assert {"LICENSE", "NOTICE"} <= {Path(name).name for name in names}
    assert "swin2sr = app.__main__:main" in entry_points
    fields = email.message_from_string(metadata)
    assert fields["Version"] == PYPROJECT["version"]
    assert {line.split(", ")[0] for line in fields.get_all("Project-URL")} >= {"Repository", "Issues", "Changelog"}
    assert fields["Keywords"]
    assert "Programming Language :: Python :: 3.14" in fields.get_all("Classifier")


@pytest.mark.slow
def test_a_release_is_not_built_without_the_kernel(unpacked, tmp_path):
    """With SWIN2SR_REQUIRE_KERNEL a missing compiler is an error, so that no slow wheel is released."""
    program = f"import setuptools.build_meta as backend; backend.build_wheel({str(tmp_path)!r})"
    env = {**os.environ, "CC": "false", "SWIN2SR_REQUIRE_KERNEL": "1"}
    result = subprocess.run([sys.executable, "-c", program], cwd=unpacked, env=env, capture_output=True, check=False)
    assert result.returncode != 0
    assert not list(tmp_path.glob("*.whl"))


@pytest.mark.slow
def test_the_client_has_the_version_of_the_service(tmp_path):
    """Both are built from one source tree, and one file has the version."""
    source = checkout(tmp_path / "clone") / "app" / "thin"
    (tmp_path / "out").mkdir()
    file = build(source, "wheel", tmp_path / "out")
    assert file.name == f"swin2sr_client-{PYPROJECT['version']}-py3-none-any.whl"


def test_the_version_is_the_installed_packages():
    """It comes from the metadata; reinstall the package after a change of the version."""
    assert service_version() == PYPROJECT["version"]
    assert re.match(r"\d+\.\d+", torch_version())


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """The wheel that `make dist` releases for this platform, from a fresh clone."""
    clone = checkout(tmp_path_factory.mktemp("clone"))
    subprocess.run(["make", "-s", "dist", f"PYTHON={sys.executable}"], cwd=clone, check=True)
    [file] = [file for file in (clone / "dist").glob("*.whl") if "-any" not in file.name]
    assert {each.name.partition("-")[0] for each in (clone / "dist").iterdir()} == {"swin2sr_serve", "swin2sr_client"}
    return clone, file


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_released_wheel_fits_every_python_and_common_linux(released):
    """Auditwheel finds no library outside the policy that the tag states, and the kernel needs no Python version."""
    clone, file = released
    tag = file.stem.split("-", 2)[2]
    assert re.fullmatch(r"py3-none-manylinux_2_\d+_(x86_64|aarch64)", tag)
    show = [clone / "build" / "tools" / "bin" / "auditwheel", "show", file]
    report = subprocess.run(show, capture_output=True, text=True, check=True).stdout
    assert tag.rpartition("none-")[2] in report
    with zipfile.ZipFile(file) as archive:
        assert [name for name in archive.namelist() if name.endswith(".so")] == ["model/kernels/block.so"]


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-gcc") is None, reason="gcc-aarch64-linux-gnu is not installed")
def test_the_wheel_for_arm_is_built_too(released, tmp_path):
    """Auditwheel takes it for common Linux; tests/test_other_processors.py runs its kernel."""
    clone, _ = released
    tools = clone / "build" / "tools" / "bin"
    command = [tools / "auditwheel", "repair", "--wheel-dir", tmp_path / "dist", arm_wheel(tmp_path)]
    subprocess.run(command, check=True, env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"})
    [file] = (tmp_path / "dist").iterdir()
    assert re.fullmatch(r"swin2sr_serve-[\d.]+-py3-none-manylinux_2_\d+_aarch64", file.stem)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_built_wheel_is_fast_without_a_compiler(released, tmp_path):
    """Installed with CC=false into a new environment, it has the kernel's level and the speed of the source tree."""
    _, file = released
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    [site] = environment.glob("lib/python*/site-packages")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, file]
    subprocess.run(install, check=True, env={**os.environ, "CC": "false"})
    here = [path for path in sys.path if path.endswith("site-packages")]
    (site / "dependencies.pth").write_text("\n".join(here))
    places = {"wheel": (environment / "bin" / "python", tmp_path), "source": (sys.executable, ROOT)}
    passes = {name: Passes(*place) for name, place in places.items()}
    try:
        assert passes["wheel"].folder == str(site / "model")
        assert passes["wheel"].level == passes["source"].level == library.kernel_level() != "none"
        times = {name: [] for name in passes}
        for _ in range(15):
            for name, each in passes.items():
                times[name].append(each.seconds())
    finally:
        for each in passes.values():
            each.close()
    ratio = statistics.median(times["wheel"]) / statistics.median(times["source"])
    print(f"kernel {library.kernel_level()}: the wheel takes {ratio:.3f} of the source tree's processor time")
    assert ratio < 1.1


class Passes:
    """A process that upscales 192x192 with small-x2 when it is asked.

    Attributes:
        folder, level: where its package ``model`` is, and the level of its kernel.
    """

    PROGRAM = (
        "import time, sys, numpy as np, torch; torch.set_num_threads(1)\n"
        "from model.upscaler import Upscaler\n"
        "from model.kernels import library\n"
        "import model, pathlib\n"
        "folder = pathlib.Path(model.__file__).parent\n"
        "upscaler = Upscaler.from_pretrained(folder / 'weights' / 'small-x2.safetensors', device='cpu')\n"
        "image = [np.zeros((192, 192, 3), np.uint8)]\n"
        "upscaler(image); print(folder, library.kernel_level(), flush=True)\n"
        "for _ in sys.stdin:\n"
        "    start = time.process_time(); upscaler(image); print(time.process_time() - start, flush=True)\n"
    )

    def __init__(self, python, folder):
        command = [python, "-c", self.PROGRAM]
        self._process = subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.folder, self.level = self._process.stdout.readline().split()

    def seconds(self):
        """Processor time of one pass."""
        self._process.stdin.write("once\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self):
        """End the process."""
        self._process.communicate()
