"""The optional C kernel; all else is in pyproject.toml. Where there is no compiler, the package works without it."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "model.kernels.block",  # a plain shared library that ctypes loads, not a module
            ["model/kernels/block.c"],
            depends=["model/kernels/block.h"],
            extra_compile_args=["-O3", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"],
            libraries=["m", "pthread"],
            optional=True,
        )
    ]
)
