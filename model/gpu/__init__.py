"""The forward pass on a GPU: windows alone, in kernels that are chosen and graphs that are captured before a request.

``windowed`` is the network over windows, ``operators`` and ``kernels`` are two forms of what takes its time, ``graphs``
replays it, and ``forward`` brings pixels to it and values back. All but the kernels and graphs runs on a CPU too, which
is how it is tested; the service computes there with ``model.network``.
"""
