"""Tiny random weights instead of the authors', as on a hub and in a release, with their own digest."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors.torch import load_file

from model.checkpoints import write_official, write_pretrained
from model.image_processor import Swin2SRImageProcessor
from model.variants import VARIANTS
from tests.networks import tiny_network

NAME = "lightweight-x2"
HUB_ID = VARIANTS[NAME].hub_id
BIN = f"{HUB_ID}/pytorch_model.bin"
RELEASED = f"release/{VARIANTS[NAME].release_file}"


def hub_files(network, hub_id):
    """The files of a network in the hub's layout, by their paths on a loopback hub."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pretrained(network, folder)
        Swin2SRImageProcessor().save_pretrained(folder)
        weights = folder / "model.safetensors"
        torch.save(load_file(weights), folder / "pytorch_model.bin")
        weights.unlink()
        return {f"{hub_id}/{file.name}": file.read_bytes() for file in folder.iterdir()}


@cache
def tiny_files():
    """Both layouts of one network with lightweight-x2's head, by their paths on a loopback hub."""
    network = tiny_network("lightweight_x4", upscale=2)
    with tempfile.TemporaryDirectory() as folder:
        released = Path(folder) / "released.pth"
        write_official(network, released)
        return MappingProxyType(hub_files(network, HUB_ID) | {RELEASED: released.read_bytes()})


def digest(path):
    """The SHA-256 of a file of ``tiny_files``."""
    return hashlib.sha256(tiny_files()[path]).hexdigest()


def tiny_variant():
    """lightweight-x2, if the authors had published the tiny weights."""
    return replace(VARIANTS[NAME], digests={"pytorch_model.bin": digest(BIN)})
