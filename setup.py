"""The optional C kernel; everything else is in pyproject.toml. Without a compiler the package installs without it."""

import os
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

KERNEL = Extension(
    "model.kernels.block",  # a plain shared library that ctypes loads, not a module
    [f"model/kernels/{name}.c" for name in ("block", "amx", "pool", "paeth", "checksum")],
    depends=sorted(map(str, Path("model/kernels").glob("*.h"))),
    extra_compile_args=["-O3", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"],
    libraries=["m", "pthread"],
    optional=not os.environ.get("SWIN2SR_REQUIRE_KERNEL"),  # a release is not built without it
)


class BuildKernel(build_ext):
    """Builds the kernel under a name without a Python version, because it uses nothing of Python."""

    def build_extension(self, ext: Extension) -> None:
        """Build the kernel; without its AMX level if the compiler or the assembler does not have the instructions."""
        try:
            super().build_extension(ext)
        except CompileError:
            ext.define_macros.append(("WITHOUT_AMX", None))
            super().build_extension(ext)

    def get_ext_filename(self, fullname: str) -> str:
        """``model/kernels/block.so``, or ``.pyd`` on Windows."""
        path = Path(super().get_ext_filename(fullname))
        return str(path.with_name(path.name.partition(".")[0] + path.suffix))

    def copy_extensions_to_source(self) -> None:
        """Remove a kernel with a Python version in its name, which would be loaded in place of the new one."""
        super().copy_extensions_to_source()
        folder = Path("model/kernels")
        if (folder / "block.so").exists():
            for older in folder.glob("block.*.so"):
                older.unlink()


class KernelWheel(bdist_wheel):
    """Tags the wheel ``py3-none-<platform>``, or ``py3-none-any`` if it has no kernel."""

    def get_tag(self) -> tuple[str, str, str]:
        """Every Python 3; the platform only if the wheel holds a shared library."""
        built = [name for pattern in ("*.so", "*.pyd") for name in Path(self.bdist_dir).rglob(pattern)]
        return "py3", "none", super().get_tag()[2] if built else "any"


setup(ext_modules=[KERNEL], cmdclass={"build_ext": BuildKernel, "bdist_wheel": KernelWheel})
