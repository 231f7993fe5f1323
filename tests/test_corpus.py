"""The corpus tool: ``python -m tests.corpus FOLDER``."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from app import codec
from tests.corpus import __main__ as corpus
from tests.pictures import ORIENTED_EXIF, adobe_rgb, image, photograph, saved, written


@pytest.fixture
def folder(tmp_path):
    """Files of every outcome but a fault."""
    (tmp_path / "deep").mkdir()
    tagged = image(dtype=np.uint16, alpha=True, metadata=codec.Metadata(icc=adobe_rgb()))
    (tmp_path / "deep/a.png").write_bytes(written(tagged))
    (tmp_path / "turned.jpg").write_bytes(saved(photograph(), "JPEG", exif=b"Exif\0\0" + ORIENTED_EXIF))
    (tmp_path / "cut.jpg").write_bytes(saved(photograph(), "JPEG")[:-100])
    (tmp_path / "notes.txt").write_bytes(b"hello")
    return tmp_path


def test_a_folder_of_good_and_bad_files_has_no_fault(folder, capsys):
    """Each file is counted under its format and outcome, and no pair of formats loses anything in silence."""
    assert corpus.main([str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line and line[0].isalpha()}
    assert "4 files, 0 faults" in lines[-1]
    assert rows["none"] == ["0", "0", "1", "0", "0"]
    losses = [line.split() for line in lines[lines.index(next(line for line in lines if "losses" in line)) + 2 : -1]]
    assert {row[0] for row in losses} == {"jpeg", "png"}
    assert {cell for row in losses for cell in row[1:]} == {"0/1"}


def test_another_picture_is_a_fault(folder, monkeypatch):
    """A decoder that turns an image the wrong way, or shows other colours, is noticed."""
    real = codec.decode

    def inverted(*arguments):
        found = real(*arguments)
        return codec.Image(np.invert(found.pixels), None, found.format)

    monkeypatch.setattr(codec, "decode", inverted)
    findings = corpus.Findings()
    assert corpus.classify(folder / "turned.jpg", findings, losses=False) == "fault"
    assert "levels" in findings.faults[0]


def test_a_crash_is_a_fault(folder, monkeypatch):
    """Whatever is raised but the codec's own errors."""

    def crash(*_):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(codec, "decode", crash)
    findings = corpus.Findings()
    assert corpus.classify(folder / "turned.jpg", findings) == "fault"
    assert "ZeroDivisionError" in findings.faults[0]


def test_a_loss_without_a_notice_is_a_fault(monkeypatch):
    """An encoder that drops EXIF and says nothing."""
    body = saved(photograph(), "JPEG", exif=b"Exif\0\0" + ORIENTED_EXIF)
    decoded = codec.decode(body, corpus.LIMITS)
    assert list(corpus.find_losses(decoded, corpus.Findings())) == []

    def forgetful(picture, _options):
        stream = BytesIO()
        Image.fromarray(picture.pixels).save(stream, "PNG")
        return codec.Encoded(stream.getvalue(), "image/png", ".png")

    monkeypatch.setattr(codec, "encode", forgetful)
    assert "to png: EXIF is lost without a notice" in list(corpus.find_losses(decoded, corpus.Findings()))
