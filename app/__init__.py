"""The HTTP service around Swin2SR: requests, threads and policy; the network itself lives in ``model``."""

__version__ = "0.1.0"
