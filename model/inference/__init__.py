"""The fast forward pass: the network, computed on the windows of images of any sizes.

``cpu`` computes images on a CPU, and ``model.gpu`` on a GPU. Both compute the transformer blocks with ``body``.
"""
