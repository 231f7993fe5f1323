"""A log that is not read, a closed or full stream: the service serves and ends all the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest

from app.cli import commands
from tests.scripted import PATIENCE
from tests.server import ROOT, free_ports

SERVER = [sys.executable, "-W", "ignore", "-m", "tests.scripted_server"]

PROGRAM = """
import logging, os, sys
from app import logs
logs.configure({format!r})
logger = logging.getLogger("app")
{body}
"""


def run(body, log_format="text", redirect="", **options):
    """A process that configures the log and runs these lines."""
    program = PROGRAM.format(format=log_format, body=body)
    command = ["sh", "-c", f'exec "$@" {redirect}', "sh", sys.executable, "-c", program]
    return subprocess.run(command, cwd=ROOT, timeout=PATIENCE, check=False, **options)


@pytest.mark.slow
def test_what_does_not_fit_is_dropped_and_counted():
    """With a pipe that is not read, logging does not block, and the process ends."""
    reader, writer = os.pipe()
    body = """
for number in range(2 * logs.WAITING_LINES):
    logger.info("x" * 100)
assert logs.dropped() > 0
logs.leave(7)
"""
    try:
        assert run(body, stderr=writer, stdout=writer).returncode == 7
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("redirect", ["2>/dev/full", ">/dev/full", "2>&-", ">&-", ">&- 2>&-"])
def test_a_full_or_closed_stream_is_no_failure(redirect):
    """No traceback on the other stream, and nothing is written where it does not belong."""
    body = 'logger.info("to the log")\nlogs.announce("to the person")\nlogs.leave(0)'
    done = run(body, redirect=redirect, capture_output=True)
    assert done.returncode == 0
    assert b"Traceback" not in done.stdout + done.stderr
    assert b"Exception ignored" not in done.stdout + done.stderr


def test_lines_go_where_they_belong():
    """Announcements to standard output, the log to standard error, in order and complete."""
    body = 'for n in range(500): logger.info("line %d", n)\nlogs.announce("hello")\nlogs.leave(0)'
    done = run(body, capture_output=True, text=True)
    assert done.stdout == "hello\n"
    assert [line.split()[-1] for line in done.stderr.splitlines()] == [str(number) for number in range(500)]


def test_in_json_every_line_is_json():
    """Warnings of Python and uncaught exceptions, of threads too."""
    body = """
import threading, warnings
logs.announce("hello")
warnings.warn("careful")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
logger.info("with %s", object)
try:
    {}["lost"]
except KeyError:
    logger.exception("went wrong")
try:
    1 / 0
except ZeroDivisionError:
    sys.excepthook(*sys.exc_info())
logs.leave(0)
"""
    done = run(body, "json", capture_output=True, text=True)
    lines = [json.loads(line) for line in (done.stdout + done.stderr).splitlines()]
    assert len(lines) == 6
    assert sum("ZeroDivisionError" in line.get("exception", "") for line in lines) == 2


REFUSED = """
import os, sys
import app.server  # once for all that follow
from app.cli import commands

for arguments in (["--threads", "many"], ["--model-dir", "/nowhere"], ["--variants", "no-such"]):
    if not os.fork():
        sys.argv = ["swin2sr", "serve", "--port", "0", "--device", "cpu", *arguments]
        commands.main()
    print("status", os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


@pytest.mark.slow
def test_a_refused_start_is_json_too():
    """Settings, and what is found out later; misspelt variables are warned of in JSON."""
    environment = {**os.environ, "SWIN2SR_LOG_FORMAT": "json", "SWIN2SR_COLOUR": "blue"}
    command = [sys.executable, "-W", "ignore", "-c", REFUSED]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
    )
    *starts, rest = done.stdout.split("status 1\n")
    assert (len(starts), rest) == (3, "")
    for start in starts:
        lines = [json.loads(line) for line in start.splitlines()]
        assert any("SWIN2SR_COLOUR" in line["message"] for line in lines)
        assert lines[-1]["level"] == "error"


@pytest.mark.parametrize("arguments", [["--bogus"], ["--port"], ["--log-format=json", "--no-such", "1"]])
def test_a_fault_of_the_command_line_is_json_too(monkeypatch, capsys, arguments):
    """An unknown option, or one without its value; the status is that of every fault of the command line."""
    if "--log-format=json" not in arguments:
        monkeypatch.setenv("SWIN2SR_LOG_FORMAT", "json")
    monkeypatch.setattr("sys.argv", ["swin2sr", "serve", *arguments])
    with pytest.raises(SystemExit) as end:
        commands.main()
    captured = capsys.readouterr()
    assert end.value.code == 2
    assert captured.out == ""
    assert "option" in json.loads(captured.err)["message"].lower()


@pytest.mark.slow
def test_promise_25_a_server_whose_log_is_full_serves_and_ends():
    """Requests are answered, SIGTERM is heard, dropped lines are counted in the metrics."""
    [port] = free_ports(1)
    reader, writer = os.pipe()
    settings = {"SWIN2SR_PORT": str(port), "SWIN2SR_DRAIN_DELAY_MS": "0", "SWIN2SR_VARIANTS": "classical-x2"}
    with subprocess.Popen(
        SERVER, cwd=ROOT, env={**os.environ, **settings, "SWIN2SR_DEVICE": "cpu"}, stdout=writer, stderr=writer
    ) as process:
        os.close(writer)
        try:
            url = f"http://127.0.0.1:{port}"
            end = time.monotonic() + 3 * PATIENCE
            with httpx.Client(transport=httpx.HTTPTransport(retries=1), base_url=url) as client:
                while process.poll() is None and time.monotonic() < end:
                    try:
                        if client.get("/health/ready").status_code == 200:
                            break
                    except httpx.TransportError:
                        threading.Event().wait(0.1)
                for _ in range(400):
                    assert client.get("/v1/variants/x9").status_code == 404
                assert "swin2sr_log_dropped_total" in client.get("/metrics").text
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
            os.close(reader)
