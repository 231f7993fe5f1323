"""How the embedded variants were made: ``python -m model.training --variant small-x2 --photos FOLDER``.

Needs torch, numpy, pillow and safetensors alone. Nothing that serves imports this package. The same command fine-tunes
the official weights (``--variant lightweight-x2 --init FILE``).
"""
