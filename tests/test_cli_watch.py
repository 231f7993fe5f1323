"""``swin2sr watch``: what is taken for complete, what is done once, and what is tried again."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from app.cli.commands import build
from app.cli.watch import RETRY_S, FolderWatcher
from app.errors import InvalidImage, NotReady, ServerUnreachable
from tests.listening import listening
from tests.scripted import PATIENCE, ScriptedUpscaler
from tests.service import noise, pixels_of, png, scripted_app


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def watcher(tmp_path, clock):
    """Watches a folder; its results go into a sub-folder."""
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    return FolderWatcher(folder, folder / "out", "v", "png", clock)


def names(tasks):
    return [task.source.name for task in tasks]


def test_a_file_counts_when_it_stopped_growing(watcher):
    """It has the same size and time in two scans; an empty file is not complete."""
    photo = watcher.folder / "sub" / "a.png"
    photo.write_bytes(b"")
    assert watcher.scan() == watcher.scan() == []
    for length in (1, 2, 3):
        photo.write_bytes(b"x" * length)
        assert watcher.scan() == []
    (task,) = watcher.scan()
    assert (task.source, task.target) == (photo, watcher.folder / "out" / "sub" / "a-v.png")
    assert names(watcher.scan()) == ["a.png"]
    watcher.finish(task, None)
    assert watcher.scan() == []


def test_a_restart_continues(watcher, clock):
    """An image whose output exists is not done again; results are not taken for inputs."""
    for name in ("a.png", "b.png"):
        (watcher.folder / name).write_bytes(b"x")
    watcher.output.mkdir()
    (watcher.output / "a-v.png").write_bytes(b"result")
    again = FolderWatcher(watcher.folder, watcher.output, "v", "png", clock)
    assert again.scan() == []
    assert names(again.scan()) == ["b.png"]
    same = FolderWatcher(watcher.folder, watcher.output, "v", "same", clock)
    (watcher.output / "b-v.webp").write_bytes(b"result")
    assert same.scan() == same.scan() == []


@pytest.mark.parametrize("error", [NotReady("loading"), ServerUnreachable("gone"), OSError("disk full")])
def test_what_may_pass_is_tried_again_later(watcher, clock, error):
    """A server that is away, or a full disk."""
    (watcher.folder / "a.png").write_bytes(b"x")
    watcher.scan()
    (task,) = watcher.scan()
    watcher.finish(task, error)
    assert watcher.scan() == []
    clock.now += RETRY_S
    assert names(watcher.scan()) == ["a.png"]


def test_a_bad_image_is_tried_again_when_it_changes(watcher, clock):
    """Not before, whatever time passes."""
    (watcher.folder / "a.png").write_bytes(b"x")
    watcher.scan()
    (task,) = watcher.scan()
    watcher.finish(task, InvalidImage("broken"))
    clock.now += 10 * RETRY_S
    assert watcher.scan() == []
    (watcher.folder / "a.png").write_bytes(b"good")
    assert watcher.scan() == []
    assert names(watcher.scan()) == ["a.png"]


def test_a_removed_file_is_forgotten(watcher):
    """If it appears again, it counts as new."""
    photo = watcher.folder / "a.png"
    photo.write_bytes(b"x")
    watcher.scan()
    photo.unlink()
    assert watcher.scan() == []
    photo.write_bytes(b"x")
    assert watcher.scan() == []
    assert names(watcher.scan()) == ["a.png"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("in", "-o", "in"), "is the watched folder"),
        (("in", "-o", "out", "--quality", "500"), "--quality"),
        (("in", "-o", "out", "--format", "gif"), "--format"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, monkeypatch, arguments, words):
    """Before anything is loaded."""
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path)
    answer = CliRunner().invoke(build(), ["watch", *arguments])
    assert answer.exit_code == 1
    assert words in answer.stderr


def wait_for(*files):
    deadline = time.monotonic() + PATIENCE
    while not all(file.exists() for file in files):
        assert time.monotonic() < deadline, "the results did not come"
        time.sleep(0.05)


@pytest.mark.slow
def test_images_are_upscaled_as_they_arrive_and_sigterm_ends_it(tmp_path):
    """On a server: one that is there, one that arrives, one that is broken; exit status 0."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    (folder / "a.png").write_bytes(png(noise(8, 8, seed=1)))
    (folder / "bad.png").write_bytes(b"nonsense")
    with listening(scripted_app(tmp_path / "service", lightweight_x2=ScriptedUpscaler())) as url:
        command = [sys.executable, "-m", "app", "watch", str(folder), "-o", str(out), "--url", url, "--interval", "0.1"]
        with subprocess.Popen(
            [*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            wait_for(out / "a-lightweight-x2.png")
            (folder / "b.png").write_bytes(png(noise(8, 8, seed=2)))
            wait_for(out / "b-lightweight-x2.png")
            os.kill(process.pid, signal.SIGTERM)
            stdout, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, stderr
    assert pixels_of((out / "b-lightweight-x2.png").read_bytes()).shape == (16, 16, 3)
    assert stdout.count("unsupported_format") == 1
    assert stdout.count('"target"') == 2
    assert sorted(file.name for file in out.iterdir()) == ["a-lightweight-x2.png", "b-lightweight-x2.png"]


def test_stopping_finishes_what_was_begun(tmp_path):
    """And begins nothing more."""
    from rich.console import Console

    from app.cli.bulk import BulkUpscaler
    from app.cli.files import FileTask

    stop, begun = asyncio.Event(), []

    class Backend:
        async def upscale(self, _body, name, _on_progress):
            begun.append(name)
            stop.set()
            raise InvalidImage("no image")

    for name in "abc":
        (tmp_path / name).write_bytes(b"x")
    tasks = [FileTask(tmp_path / name, tmp_path / f"{name}.png") for name in "abc"]
    asyncio.run(BulkUpscaler(Backend(), Console(quiet=True)).run(tasks, 1, stop))
    assert begun == ["a"]
