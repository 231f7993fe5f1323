"""The commands of ``swin2sr``."""
