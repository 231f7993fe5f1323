"""The page's files over HTTP."""

from __future__ import annotations

import httpx
import numpy as np
import pytest

from tests.browser import SAMPLE_SIZE, WEB
from tests.listening import listening
from tests.scripted import ScriptedUpscaler
from tests.service import pixels_of, scripted_app


@pytest.mark.slow
def test_every_part_is_served_with_a_strict_policy(tmp_path):
    """Nothing inline, nothing from elsewhere, no framing; and nothing but the page's own files."""
    with listening(scripted_app(tmp_path, lightweight_x2=ScriptedUpscaler())) as address:
        parts = [f"/web/{path.name}" for path in WEB.iterdir() if path.is_file()]
        for path in ["/", "/docs", "/status", *parts]:
            answer = httpx.get(address + path)
            assert answer.status_code == 200, path
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; "), path
            assert "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
        for path in ("/web/nothing.js", "/web/..%2Fmain.py", "/web/__init__.py", "/web/"):
            assert httpx.get(address + path).status_code == 404, path


@pytest.mark.slow
def test_what_a_browser_has_is_not_sent_again(tmp_path):
    """As long as it is the same."""
    with listening(scripted_app(tmp_path, lightweight_x2=ScriptedUpscaler())) as address:
        for path in ("/", "/web/page.css", "/web/sample.png"):
            tag = httpx.get(address + path).headers["etag"]
            again = httpx.get(address + path, headers={"If-None-Match": f"W/{tag}"})  # weak behind a proxy that packs
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
            assert httpx.get(address + path, headers={"If-None-Match": '"another"'}).status_code == 200


def test_the_picture_of_the_page_is_the_samples():
    """The sample's result is twice its size and, reduced again, equals the sample."""
    result = pixels_of((WEB / "sample-upscaled.webp").read_bytes()).astype(float)
    sample = pixels_of((WEB / "sample.png").read_bytes()).astype(float)
    assert sample.shape == (SAMPLE_SIZE[1], SAMPLE_SIZE[0], 3)
    assert result.shape == (2 * SAMPLE_SIZE[1], 2 * SAMPLE_SIZE[0], 3)
    reduced = result.reshape(SAMPLE_SIZE[1], 2, SAMPLE_SIZE[0], 2, 3).mean(axis=(1, 3))
    assert 10 * np.log10(255**2 / np.mean((reduced - sample) ** 2)) > 28
