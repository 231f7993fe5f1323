"""Checkpoints: weights in files, under official names or those of Transformers."""

from model.checkpoints.read import Checkpoint, load_network, load_weights, read_checkpoint
from model.checkpoints.state_dict_keys import CheckpointError
from model.checkpoints.write import write_official, write_pretrained

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "load_network",
    "load_weights",
    "read_checkpoint",
    "write_official",
    "write_pretrained",
]
