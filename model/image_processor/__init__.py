"""The image processor of the Transformers-compatible surface."""

from model.image_processor.processor import Swin2SRImageProcessor

__all__ = ["Swin2SRImageProcessor"]
