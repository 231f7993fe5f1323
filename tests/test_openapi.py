"""The description of the HTTP interface: committed, complete, and true."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app import errors
from app.cli.commands import build
from app.routes.examples import EXAMPLE_ERRORS, problems
from app.schemas import SMALLEST_TILE
from tests.scripted import ScriptedUpscaler
from tests.service import noise, png, png_header, running, scripted_app

ROOT = Path(__file__).parents[1]
COMMITTED = ROOT / "openapi.json"


def test_the_committed_document_is_the_live_one(tmp_path):
    """As ``GET /openapi.json`` answers; ``make openapi`` writes it anew."""

    async def ask():
        async with running(scripted_app(tmp_path, lightweight_x2=ScriptedUpscaler())) as client:
            return (await client.get("/openapi.json")).json()

    live = asyncio.run(ask())
    assert json.loads(COMMITTED.read_text("utf-8")) == live, "run `make openapi`"


def test_the_command_prints_it():
    """Exactly as committed."""
    answer = CliRunner().invoke(build(), ["openapi"])
    assert answer.exit_code == 0
    assert answer.stdout == COMMITTED.read_text("utf-8")


def operations():
    """Every address with its method and description."""
    for path, methods in json.loads(COMMITTED.read_text("utf-8"))["paths"].items():
        for method, operation in methods.items():
            yield pytest.param(operation, id=f"{method} {path}")


@pytest.mark.parametrize("operation", list(operations()))
def test_every_route_says_what_it_does_and_shows_its_errors(operation):
    """A summary, a description, and for each error that it names a body for each code."""
    assert operation["summary"]
    assert operation["description"]
    for status, response in operation["responses"].items():
        if status == "default" or int(status) >= 400:
            examples = response["content"]["application/problem+json"]["examples"]
            assert examples
            number = 500 if status == "default" else int(status)
            assert all(example["value"]["status"] == number for example in examples.values())


def nodes(node):
    """Every object in a document."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from nodes(child)


def test_the_problem_document_is_described_once():
    """Generators make one class of it: all errors refer to the schema."""
    document = json.loads(COMMITTED.read_text("utf-8"))
    described = [each for each in nodes(document) if {"title", "status", "detail"} <= each.get("properties", {}).keys()]
    assert described == [document["components"]["schemas"]["Problem"]]
    bodies = [each["application/problem+json"] for each in nodes(document) if "application/problem+json" in each]
    assert len(bodies) > 10
    assert all(body["schema"] == {"$ref": "#/components/schemas/Problem"} for body in bodies)


def test_every_reference_leads_somewhere():
    """Within the document."""
    document = json.loads(COMMITTED.read_text("utf-8"))
    names = {each["$ref"] for each in nodes(document) if isinstance(each.get("$ref"), str)}
    assert names
    assert {name.removeprefix("#/components/schemas/") for name in names} <= document["components"]["schemas"].keys()


def test_options_have_their_limits_in_the_query_and_in_the_form():
    """The same schema in both places, with the smallest tile."""
    operation = json.loads(COMMITTED.read_text("utf-8"))["paths"]["/v1/upscale"]["post"]
    query = {each["name"]: each["schema"] for each in operation["parameters"] if each["in"] == "query"}
    form = operation["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert set(form) - {"file"} == set(query)
    for schema in (query["tile"], form["tile"]):
        assert {"type": "integer", "minimum": SMALLEST_TILE} in schema["anyOf"]


def leaves(error):
    """The errors that a server answers with; the client raises one of its own where no server answers."""
    if error not in (errors.ServiceError, errors.RequestError, errors.ServerError, errors.ServerUnreachable):
        yield error
    for child in error.__subclasses__():
        yield from leaves(child)


def test_there_is_an_example_of_every_error():
    """One each, and a route's documentation has those that it names."""
    assert sorted(error.code for error in EXAMPLE_ERRORS) == sorted({kind.code for kind in leaves(errors.ServiceError)})
    shown = problems(errors.NotReady, errors.QueueFull)
    assert set(shown) == {429, 503, "default"}
    assert "Retry-After" in shown[429]["headers"]


def test_the_examples_are_what_the_service_answers(tmp_path):
    """Title, type, status, and the names of the facts, for every error that a request alone can cause."""
    picture = {"files": {"file": png(noise(8, 8))}}
    key = {"Authorization": "Bearer user-key"}
    requests = [
        ("POST", "/v1/upscale", {"files": {"file": png(noise(20, 20))[:-30]}}),
        ("POST", "/v1/upscale", {"files": {"image": b"x"}}),
        ("POST", "/v1/upscale", {"headers": {"Authorization": ""}, **picture}),
        ("POST", "/v1/variants/x2/load", {}),
        ("GET", "/v1/enlarge", {}),
        ("GET", "/v1/variants", {"headers": {"Host": "images.example"}}),
        ("POST", "/v1/upscale?variant=x9", picture),
        ("GET", "/v1/upscale", {}),
        ("POST", "/v1/upscale", {"content": b"x" * 100_001, "headers": {"Content-Type": "image/png"}}),
        ("POST", "/v1/upscale", {"files": {"file": png_header(3000, 3000)}}),
        ("POST", "/v1/upscale?format=webp", {"files": {"file": png(noise(2, 9000))}}),
        ("POST", "/v1/upscale", {"files": {"file": b"nonsense"}}),
        ("POST", "/v1/upscale?quality=0", picture),
        ("POST", "/v1/upscale?variant=realworld-x4", picture),
    ]

    async def ask():
        settings = {"api_keys": "user-key", "max_body_bytes": 100_000}
        app = scripted_app(tmp_path, settings, lightweight_x2=ScriptedUpscaler())
        async with running(app) as client:
            return [
                (await client.request(method, path, **{**more, "headers": {**key, **more.get("headers", {})}})).json()
                for method, path, more in requests
            ]

    examples = {error.code: error.problem("") for error in EXAMPLE_ERRORS}
    answers = {answer["code"]: answer for answer in asyncio.run(ask())}
    assert len(answers) == len(requests)
    for code, answer in answers.items():
        assert set(answer) == set(examples[code]), code
        assert {name: answer[name] for name in ("type", "title", "status")} == {
            name: examples[code][name] for name in ("type", "title", "status")
        }
