"""Averaging the weights of two networks."""

from pathlib import Path

import pytest
import torch

from model.checkpoints import load_network, write_official
from model.training.average import main
from tests.networks import tiny_network


def test_weights_are_averaged_and_written(tmp_path: Path) -> None:
    """A quarter of the way from one to the other, in bfloat16, with the second one's configuration."""
    before, after = tiny_network(seed=0), tiny_network(seed=1, range_slack=0.0)
    for name, network in (("a", before), ("b", after)):
        write_official(network, tmp_path / f"{name}.safetensors")
    files = [str(tmp_path / f"{name}.safetensors") for name in "abc"]
    assert main([*files, "--share", "0.25"]) == 0
    found = load_network(tmp_path / "c.safetensors")
    assert found.config == after.config
    for mixed, one, other in zip(found.parameters(), before.parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(mixed, torch.lerp(one, other, 0.25).bfloat16().float(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("share", "fields", "message"),
    [
        ("1.5", {}, "share must lie in"),
        ("0.5", {"embed_dim": 48}, "different configurations"),
        ("0.5", {"img_range": 255.0}, "different configurations"),
    ],
)
def test_what_cannot_be_averaged_is_said(
    share: str, fields: dict[str, object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that names the fault, and no file."""
    write_official(tiny_network(), tmp_path / "a.safetensors")
    write_official(tiny_network(**fields), tmp_path / "b.safetensors")
    assert main([str(tmp_path / f"{name}.safetensors") for name in "abc"] + ["--share", share]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "c.safetensors").exists()
