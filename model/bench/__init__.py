"""How fast the network is here: against other runtimes, against the machine, and against itself.

``python -m model.bench`` needs torch, numpy, pillow and safetensors; other runtimes are compared where installed.
"""
