"""The forward pass on a GPU.

``network`` computes images with ``model.inference`` over windows alone, ``kernels`` are the operators in Triton,
``autotune`` chooses among the forms of an operator, ``graphs`` records forward passes, and ``runner`` moves pixels and
values. Everything but kernels and streams also runs on a CPU, where it is tested.
"""
