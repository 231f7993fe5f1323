"""Shows that the proofs can fail: breaks a promise with a small patch, and expects its test to notice.

``python -m tests.broken.prove``; the patches are applied to a copy of the sources, never to these.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent

TESTS = {
    "promise_02": "tests/test_promise_batching.py::test_promise_2_what_waits_shares_the_next_batch",
    "promise_07": "tests/test_promise_failures.py::test_promise_7_one_bad_item_hurts_itself_alone",
    "promise_11": "tests/test_promise_batching.py::test_promise_11_leaving_ends_a_running_tiled_job_at_the_next_batch",
    "promise_15": "tests/test_promise_process.py::test_promise_15_draining_loses_nothing",
    "promise_24": "tests/batcher/test_batcher_order.py::test_a_new_request_is_served_before_those_that_just_had_a_turn",
    "promise_24_stitch": "tests/test_pipeline.py::test_a_single_result_does_not_wait_behind_the_tiles_of_a_large_image",
    "promise_15_queue": "tests/test_protocol_listening.py::test_draining_serves_what_has_begun_and_resets_nothing",
    "promise_21": "tests/test_routes_access.py::test_promise_21_a_missing_token_matches_no_key",
    "promise_22_headers": (
        "tests/test_protocol_slow_clients.py::test_promise_22_a_connection_with_unfinished_headers_is_closed"
    ),
    "promise_22_send": "tests/test_protocol_slow_clients.py::test_promise_22_a_client_that_does_not_read_is_aborted",
}
"""For each patch, the test that has to fail with it and to pass without."""


def run(test: str, folder: Path) -> int:
    """What pytest says of a test with the sources in a folder: 0 if it passes, 1 if it fails, more if it never ran."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "60", test]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False).returncode


def copy_sources(folder: Path) -> None:
    """The sources as they stand here."""
    for name in ("app", "model", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "training"))
    shutil.copy(ROOT / "pyproject.toml", folder)


def main() -> int:
    """Try every patch; 1 if a test did not notice."""
    missed = 0
    for name, test in TESTS.items():
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            copy_sources(folder)
            whole = run(test, folder)
            with (HERE / f"{name}.patch").open() as patch:
                subprocess.run(["patch", "-p1", "--quiet"], cwd=folder, stdin=patch, check=True)
            broken = run(test, folder)
        noticed = (whole, broken) == (0, 1)
        missed += not noticed
        verdict = "noticed" if noticed else f"NOT NOTICED ({whole}, then {broken})"
        print(f"{name}: {verdict} by {test.rpartition('::')[2]}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
