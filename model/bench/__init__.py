"""Benchmarks of the network: against other runtimes, against the hardware limit, and packed against one by one.

``python -m model.bench`` needs torch, numpy, pillow and safetensors. Other runtimes are compared if they are installed.
"""
