"""The HTTP service around Swin2SR: requests, threads and policy; the network itself lives in ``model``."""
