"""The OpenAPI document in other hands: a linter, and generated clients in Python and TypeScript."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from tests.server import ROOT, ServerProcess
from tests.service import noise, pixels_of, png

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

NPM = (
    "@redocly/cli@2.77.0",
    "openapi-typescript@7.13.0",
    "openapi-fetch@0.17.0",
    "typescript@5.9.3",
    "@types/node@24.0.0",
)
PYTHON_GENERATOR = "openapi-python-client==0.29.1"
DOCUMENT = ROOT / "openapi.json"
PIXELS = noise(12, 16)

PYTHON = """
import io, sys
from generated.api.upscale import upscale_v1_upscale_post as upscale
from generated.client import AuthenticatedClient
from generated.models import Problem, UpscaleV1UpscalePostFilesBody as Form
from generated.types import File
client = AuthenticatedClient(base_url=sys.argv[1], token="none-is-needed")
photo = lambda: File(payload=io.BytesIO(open("photo.png", "rb").read()), file_name="photo.png", mime_type="image/png")
for number, body in enumerate((Form(file=photo()), photo())):
    answer = upscale.sync(client=client, body=body, variant="small-x2")
    open(f"python-{number}.png", "wb").write(answer.payload.read())
problem = upscale.sync(client=client, body=Form(file=photo()), variant="nobody")
assert isinstance(problem, Problem) and problem.code == "unknown_variant", problem
"""

TYPESCRIPT = """
import { readFileSync, writeFileSync } from "node:fs";
import createClient from "openapi-fetch";
import type { paths } from "./schema.js";

const client = createClient<paths>({ baseUrl: process.argv[2] });
const photo = new Blob([readFileSync("photo.png")], { type: "image/png" });
const upscale = (variant: string) =>
  client.POST("/v1/upscale", {
    params: { query: { variant } },
    body: { file: photo as unknown as string }, // binary strings are the generator's type of files
    bodySerializer: (body) => {
      const form = new FormData();
      for (const [name, value] of Object.entries(body)) form.append(name, value as unknown as Blob);
      return form;
    },
    parseAs: "arrayBuffer",
  });
const { data } = await upscale("small-x2");
if (!data) throw new Error("no image");
writeFileSync("typescript.png", Buffer.from(data));
const { error } = await upscale("nobody");
if (error?.code !== "unknown_variant") throw new Error(JSON.stringify(error));
"""


def run(*command, cwd):
    """Run a program and return what it printed."""
    result = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def server():
    """The service with small-x2."""
    with ServerProcess() as process:
        yield process


@pytest.fixture
def workplace(tmp_path):
    """A folder with a photo."""
    (tmp_path / "photo.png").write_bytes(png(PIXELS))
    return tmp_path


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """A folder with the npm packages."""
    if not (shutil.which("npm") and shutil.which("node")):
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text(json.dumps({"type": "module"}))
    run("npm", "install", "--silent", "--no-audit", "--no-fund", *NPM, cwd=folder)
    return folder


def is_enlarged(file):
    """Whether the image is twice as large as the photo."""
    height, width = PIXELS.shape[:2]
    return pixels_of(file.read_bytes()).shape[:2] == (2 * height, 2 * width)


def test_a_linter_finds_no_error(node):
    """Examples and security included; a document without servers is relative to where it came from, as it should be."""
    command = [
        node / "node_modules" / ".bin" / "redocly",
        "lint",
        DOCUMENT,
        "--extends",
        "recommended",
        "--format",
        "json",
    ]
    report = run(*command, "--skip-rule", "no-empty-servers", "--skip-rule", "operation-4xx-response", cwd=node)
    assert json.loads(report[report.index("{") :])["totals"] == {"errors": 0, "warnings": 0, "ignored": 0}


def test_a_generated_python_client_gets_an_image(workplace, server):
    """From a form and from the image alone; errors are problem documents."""
    environment = workplace / "environment"
    run(sys.executable, "-m", "venv", environment, cwd=workplace)
    run(environment / "bin" / "pip", "install", "--quiet", PYTHON_GENERATOR, cwd=workplace)
    generate = [environment / "bin" / "openapi-python-client", "generate", "--path", DOCUMENT, "--meta", "none"]
    run(*generate, "--output-path", "generated", cwd=workplace)
    (workplace / "client.py").write_text(PYTHON)
    run(environment / "bin" / "python", "client.py", server.url, cwd=workplace)
    assert all(is_enlarged(workplace / f"python-{number}.png") for number in (0, 1))


def test_a_generated_typescript_client_gets_an_image(node, server):
    """The types of the document fit a call with an option, and its image and its error."""
    tools = node / "node_modules" / ".bin"
    (node / "photo.png").write_bytes(png(PIXELS))
    (node / "client.ts").write_text(TYPESCRIPT)
    run(tools / "openapi-typescript", DOCUMENT, "--default-non-nullable", "false", "-o", "schema.ts", cwd=node)
    options = ("--strict", "--target", "es2022", "--module", "nodenext", "--types", "node", "--skipLibCheck")
    run(tools / "tsc", *options, "client.ts", cwd=node)
    run("node", "client.js", server.url, cwd=node)
    assert is_enlarged(node / "typescript.png")
