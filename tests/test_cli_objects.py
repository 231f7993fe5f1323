"""``swin2sr upscale`` with S3 storage: a real S3 interface, names, listings without end, and what goes wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, urlsplit

import pytest
from typer.testing import CliRunner

from app.cli import upscale
from app.cli.commands import build
from app.cli.files import InputFile, plan_outputs
from app.cli.objects import S3Object, _matcher, _store, name_outputs
from app.client import UpscaledImage
from app.errors import InvalidImage
from tests.objects import CREDENTIALS, s3_server


@pytest.fixture(scope="module")
def storage():
    """Moto's S3 server with the bucket ``photos``, and the environment that names it."""
    with s3_server() as (bucket, environment):
        yield bucket, environment


@pytest.fixture
def bucket(storage, monkeypatch):
    """The empty bucket, which the environment names."""
    bucket, environment = storage
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    _store.cache_clear()
    yield bucket
    bucket.objects.delete()
    _store.cache_clear()


@pytest.fixture
def begun(monkeypatch):
    """The names that a stand-in for the network was asked to upscale; ``broken`` fails."""
    names = []

    class Backend:
        async def variant(self):
            return "small-x2"

        async def upscale(self, body, name, _on_progress):
            names.append(name)
            if body == b"broken":
                raise InvalidImage("This is not an image.")
            return UpscaledImage(b"large " + body, "image/png", "image.png", "small-x2", 2, 1, "")

    @asynccontextmanager
    async def open_backend(*_arguments):
        yield Backend()

    monkeypatch.setattr(upscale, "open_backend", open_backend)
    return names


def run(*arguments):
    """``swin2sr upscale`` in this process."""
    return CliRunner().invoke(build(), ["upscale", *map(str, arguments)], env={"COLUMNS": "300"})


def fill(bucket, *keys, body=None):
    """Put objects; each holds its key, or ``body``."""
    for key in keys:
        bucket.put_object(Key=key, Body=body or key.encode())


def contents(bucket, prefix=""):
    """The objects below a prefix, by key."""
    return {each.key: each.get()["Body"].read() for each in bucket.objects.filter(Prefix=prefix)}


def test_objects_become_objects(bucket, begun):
    """Those that match, with sub-folders, odd names and the extension where two names differ in nothing else."""
    fill(bucket, "in/a.jpg", "in/b.JPG", "in/b.png", "in/ö & %20.jpg", "in/sub/c.jpg", "in/.hidden.jpg", "in/note.txt")
    fill(bucket, "in/", "in/sub/")  # as consoles mark folders
    fill(bucket, "indeed/d.jpg", "other/e.jpg")
    answer = run("s3://photos/in", "-o", "s3://photos/out", "--jobs", 3)
    assert answer.exit_code == 0, answer.output
    assert contents(bucket, "out/") == {
        "out/a-small-x2.png": b"large in/a.jpg",
        "out/b-jpg-small-x2.png": b"large in/b.JPG",
        "out/b-png-small-x2.png": b"large in/b.png",
        "out/ö & %20-small-x2.png": "large in/ö & %20.jpg".encode(),
        "out/sub/c-small-x2.png": b"large in/sub/c.jpg",
    }
    assert "s3://photos/in/a.jpg -> s3://photos/out/a-small-x2.png" in answer.stderr
    assert len(begun) == 5


@pytest.mark.parametrize(
    ("inputs", "output", "expected"),
    [
        (["in/a.jpg"], "out/large.png", {"out/large.png"}),
        (["in/a.jpg"], "out", {"out/a-small-x2.png"}),
        (["in/*.jpg"], "", {"a-small-x2.png", "b-small-x2.png"}),
        (["in/**/*.jpg"], "out", {"out/a-small-x2.png", "out/b-small-x2.png", "out/sub/c-small-x2.png"}),
        (["in/*/?.jpg"], "out", {"out/sub/c-small-x2.png"}),
        (["in/[!a].jpg"], "out", {"out/b-small-x2.png"}),
        (["in/a.jpg", "in/sub/c.jpg", "in/a.jpg"], "out", {"out/a-small-x2.png", "out/sub/c-small-x2.png"}),
        (["in/", "other/"], "out", {f"out/{name}-small-x2.png" for name in ("in/a", "in/b", "in/sub/c", "other/d")}),
        ([""], "in/results", {f"in/results/{name}-small-x2.png" for name in ("in/a", "in/b", "in/sub/c", "other/d")}),
    ],
)
def test_what_an_address_means(bucket, begun, inputs, output, expected):
    """An object, a folder, a pattern, the whole bucket; results inside the inputs' folder are no inputs."""
    fill(bucket, "in/a.jpg", "in/b.jpg", "in/sub/c.jpg", "other/d.jpg")
    before = contents(bucket).keys()
    for _ in range(2):
        answer = run(*(f"s3://photos/{each}" for each in inputs), "-o", f"s3://photos/{output}", "--skip-existing")
        assert answer.exit_code == 0, answer.output
    assert contents(bucket).keys() - before == expected
    assert len(begun) == len(expected)


def test_files_and_objects_of_either_side(bucket, begun, tmp_path, monkeypatch):
    """Files become objects, objects become files, standard input becomes an object."""
    monkeypatch.chdir(tmp_path)
    Path("a.jpg").write_bytes(b"a")
    assert run("a.jpg", "-o", "s3://photos/out").exit_code == 0
    assert run("s3://photos/out", "-o", "here").exit_code == 0
    assert CliRunner().invoke(build(), ["upscale", "-", "-o", "s3://photos/b.png"], input=b"b").exit_code == 0
    assert Path("here/a-small-x2-small-x2.png").read_bytes() == b"large large a"
    assert contents(bucket)["b.png"] == b"large b"
    answer = run("s3://photos/b.png", "-o", "-")
    assert answer.stdout_bytes == b"large large b"
    assert begun == ["a.jpg", "a-small-x2.png", "", "b.png"]


@pytest.mark.slow
def test_an_existing_object_is_not_replaced_unless_asked(bucket, begun):
    """Neither before it is computed nor when another writer was faster; ``--force`` replaces it."""
    fill(bucket, "in/a.jpg")
    fill(bucket, "out/a-small-x2.png", body=b"mine")
    answer = run("s3://photos/in/a.jpg", "-o", "s3://photos/out")
    assert answer.exit_code == 1
    assert "s3://photos/out/a-small-x2.png already exists" in answer.stderr
    assert begun == []
    with pytest.raises(FileExistsError):
        S3Object("photos", "out/a-small-x2.png").write_bytes(b"other", force=False)
    assert contents(bucket)["out/a-small-x2.png"] == b"mine"
    assert run("s3://photos/in/a.jpg", "-o", "s3://photos/out", "--force").exit_code == 0
    assert contents(bucket)["out/a-small-x2.png"] == b"large in/a.jpg"


def test_a_run_continues_after_failures_and_resumes(bucket, begun):
    """What failed is listed; with --skip-existing the next run computes only that."""
    fill(bucket, *(f"in/{index}.jpg" for index in range(5)))
    fill(bucket, "in/2.jpg", body=b"broken")
    answer = run("s3://photos/in/*.jpg", "-o", "s3://photos/out", "--json")
    assert answer.exit_code == 1
    assert "4 images upscaled, 1 failed" in answer.stderr
    lines = [json.loads(line) for line in answer.stdout.splitlines()]
    assert [line["source"] for line in lines if "error" in line] == ["s3://photos/in/2.jpg"]
    fill(bucket, "in/2.jpg")
    begun.clear()
    answer = run("s3://photos/in/*.jpg", "-o", "s3://photos/out", "--skip-existing")
    assert (answer.exit_code, begun) == (0, ["2.jpg"])
    assert "4 images skipped" in answer.stderr
    assert len(contents(bucket, "out/")) == 5


@pytest.mark.slow
def test_shards_divide_a_bucket(bucket, begun):
    """Each object is in one shard, under the name that it has without shards."""
    names = [f"{index}.jpg" for index in range(6)] + ["0.png"]
    fill(bucket, *(f"in/{name}" for name in names))
    for shard in (1, 2, 3):
        assert run("s3://photos/in", "-o", "s3://photos/out", "--shard", f"{shard}/3").exit_code == 0
    assert sorted(begun) == sorted(names)
    assert {"out/0-jpg-small-x2.png", "out/0-png-small-x2.png", "out/5-small-x2.png"} <= contents(bucket).keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["s3:///in", "-o", "out"], "has no bucket name"),
        (["gs://photos/in", "-o", "out"], "gs://photos/in: addresses begin with s3://"),
        (["s3://photos/in", "-o", "S3://photos/out"], "S3://photos/out: addresses begin with s3://"),
        (["s3://photos/in", "a.jpg", "-o", "out"], "a.jpg is no s3:// address"),
        (["s3://photos/in", "s3://others/in", "-o", "out"], "several buckets"),
        (["s3://photos/in", "-o", "s3://photos/in/"], "is the folder of the inputs"),
        (["s3://photos/in", "-o", "s3://photos/out.png"], "needs an output folder"),
        (["s3://photos/in", "-o", "-"], "needs an output folder"),
        (["s3://photos/none/*.jpg", "-o", "out"], "No images found at s3://photos/none/*.jpg"),
        (
            ["s3://photos/in", "s3://photos/none.jpg", "-o", "s3://photos/out"],
            "No images found at s3://photos/none.jpg",
        ),
        (["s3://nowhere/in", "-o", "out"], "s3://nowhere/in"),
        (["s3://photos/in/a.jpg", "-o", "s3://nowhere/out"], "s3://nowhere/out/a-small-x2.png"),
        (["s3://photos/in/a.jpg", "-o", "s3://photos/out.gif"], "Unsupported output extension '.gif'"),
    ],
)
@pytest.mark.usefixtures("begun")
def test_what_cannot_be_done_is_said_in_a_line(bucket, tmp_path, monkeypatch, arguments, message):
    """Wrong addresses, and a storage that has or allows nothing: exit status 1 and no traceback."""
    monkeypatch.chdir(tmp_path)
    fill(bucket, "in/a.jpg")
    answer = run(*arguments)
    assert answer.exit_code == 1
    assert message in answer.stderr
    assert all(len(line) < 500 for line in answer.stderr.splitlines())
    assert isinstance(answer.exception, SystemExit)


def test_without_obstore_the_extra_is_named(monkeypatch):
    """Before anything else is done."""
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    _store.cache_clear()
    answer = run("s3://photos/in", "-o", "out")
    assert (answer.exit_code, "pip install 'swin2sr-serve[s3]'" in answer.stderr) == (1, True)


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        ("in", ["in", "in/a.jpg", "in/x/a.jpg"], ["inn/a.jpg", "a/in"]),
        ("", ["a.jpg", "x/a.jpg"], []),
        ("in/*.jpg", ["in/a.jpg", "in/a.b.jpg"], ["in/x/a.jpg", "in/ajpg", "in/a.jpg.png"]),
        ("in/**", ["in/a.jpg", "in/x/y/a.jpg"], ["inn/a.jpg"]),
        ("**/a?.jpg", ["ab.jpg", "x/y/ac.jpg"], ["a.jpg", "a/.jpg"]),
        ("in/[0-9]+(1).jpg", ["in/5+(1).jpg"], ["in/55+(1).jpg", "in/x+(1).jpg"]),
    ],
)
def test_patterns(pattern, inside, outside):
    """As of file names: a star stays in its folder, two stars do not."""
    matches = _matcher(pattern)
    assert [bool(matches(key)) for key in [*inside, *outside]] == [True] * len(inside) + [False] * len(outside)


def test_names_are_those_of_files():
    """Whatever lies between two keys that differ in their extension only."""
    keys = sorted(["a.avif", "a.b.jpg", "a.b.png", "a.c.png", "a.jpg", "a0.jpg", "a/a.jpg", "b.jpg", "a-.jpg", "a.png"])
    files = [InputFile(Path(key), PurePosixPath(key)) for key in keys]
    found = name_outputs(iter(files), Path("out"), "small-x2", "png")
    expected = plan_outputs(files, Path("out"), "small-x2", "png")
    assert sorted(found, key=str) == sorted(expected, key=str)


@pytest.fixture
def endless(monkeypatch):
    """An S3 server whose bucket ``photos`` lists ``endless.keys`` objects in pages; all else is not found."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
            start = int(query.get("continuation-token", 0))
            self.server.pages += 1
            end = min(start + 1000, self.server.keys)
            token = f"<NextContinuationToken>{end}</NextContinuationToken>" if end < self.server.keys else ""
            rows = (
                f"<Contents><Key>in/{index:07}.jpg</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                f"<ETag>0</ETag><Size>1</Size></Contents>"
                for index in range(start, end)
            )
            body = f"<ListBucketResult>{token}{''.join(rows)}</ListBucketResult>"
            self._answer(200, body.encode())

        def do_HEAD(self):
            self._answer(404, b"")

        def _answer(self, status, body):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.keys, server.pages = 1_000_000, 0
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}"}.items():
        monkeypatch.setenv(name, value)
    _store.cache_clear()
    yield server
    server.shutdown()
    server.server_close()
    _store.cache_clear()


def test_a_listing_is_read_as_it_is_needed(endless):
    """The first images of a million are known after a page or two."""
    args = upscale.UpscaleArgs(
        ("s3://photos/in/*.jpg",), Path("out"), None, None, 1.0, force=False, skip=False, jobs=1, as_json=False
    )
    tasks = iter(args.plan("small-x2", "png"))
    assert [next(tasks).name for _ in range(3)] == [f"s3://photos/in/000000{index}.jpg" for index in range(3)]
    assert endless.pages <= 3


def test_a_listing_that_breaks_is_reported_after_what_was_begun(bucket, begun, monkeypatch):
    """The images before it are upscaled; the exit status is 1."""
    fill(bucket, "in/a.jpg")

    def broken(_inputs):
        yield InputFile(S3Object("photos", "in/a.jpg"), PurePosixPath("a.jpg"))
        yield InputFile(S3Object("photos", "in/b.jpg"), PurePosixPath("b.jpg"))
        raise OSError("s3://photos/in: the listing broke")

    monkeypatch.setattr("app.cli.objects.S3Inputs.__iter__", broken)
    answer = run("s3://photos/in", "-o", "s3://photos/out", "--jobs", 1)
    assert (answer.exit_code, begun) == (1, ["a.jpg"])
    assert "the listing broke" in answer.stderr
    assert contents(bucket, "out/") == {"out/a-small-x2.png": b"large in/a.jpg"}


LIST = """
import asyncio, resource, sys
from typer.testing import CliRunner
from app.cli import upscale
from app.cli.commands import build
from contextlib import asynccontextmanager
class Backend:
    async def variant(self): return "small-x2"
@asynccontextmanager
async def open_backend(*_): yield Backend()
upscale.open_backend = open_backend
answer = CliRunner().invoke(build(), ["upscale", "s3://photos/in/*.jpg", "-o", "out", "--shard", "1/1000000000000"])
print(answer.exit_code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.long
def test_a_million_keys_take_no_more_memory_than_a_thousand(endless):
    """Peak memory of the whole command, whose shard has none of them."""
    peaks = []
    for keys in (1000, 1_000_000):
        endless.keys = keys
        result = subprocess.run([sys.executable, "-c", LIST], capture_output=True, text=True, check=True)
        code, peak = map(int, result.stdout.split())
        assert code == 0
        peaks.append(peak)
    print(f"peak memory: {peaks[0]} MiB for 1,000 keys, {peaks[1]} MiB for 1,000,000")
    assert peaks[1] < peaks[0] + 16
