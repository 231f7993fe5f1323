"""Load the kernel of the installed wheel without PyTorch; fails if the kernel is missing or cannot be loaded here.

Run it with the interpreter of the environment that the wheel was installed in.
"""

import ctypes
import sys
from importlib.metadata import files, version

if __name__ == "__main__":
    [kernel] = [file for file in files("swin2sr-serve") or [] if file.suffix in {".so", ".pyd"}]
    library = ctypes.CDLL(str(kernel.locate()))
    sys.stdout.write(
        f"swin2sr-serve {version('swin2sr-serve')}: {kernel} has vectors of {library.swin_block_width()} bits.\n"
    )
