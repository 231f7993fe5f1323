"""The scripted server with a deliberate leak: every upload is kept. Shows that a test of memory can fail."""

from __future__ import annotations

import sys

from app import codec
from tests import scripted_server


def main() -> int:
    """Serve until a signal comes, and forget nothing."""
    kept = []
    decode = codec.decode

    def leak(body, limits):
        image = decode(body, limits)
        kept.append((body, image.pixels))
        return image

    codec.decode = leak
    return scripted_server.main()


if __name__ == "__main__":
    sys.exit(main())
