"""Training of the embedded variants: ``python -m model.training --variant small-x2 --photos FOLDER``.

Needs only torch, numpy, pillow and safetensors. The service does not import this package. The same command fine-tunes
the official weights (``--variant lightweight-x2 --init FILE``).
"""
