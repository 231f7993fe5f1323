"""The model classes of the Transformers-compatible surface."""

from model.outputs import BaseModelOutput, ImageSuperResolutionOutput
from model.pretrained.models import Swin2SRForImageSuperResolution, Swin2SRModel

__all__ = ["BaseModelOutput", "ImageSuperResolutionOutput", "Swin2SRForImageSuperResolution", "Swin2SRModel"]
