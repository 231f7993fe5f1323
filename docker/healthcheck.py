"""Exit with 0 if the service in this container is ready, else with 1 and the reason. HEALTHCHECK runs it."""

import os
import sys
import urllib.error
import urllib.request

EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}  # noqa: S104 - looked up, not listened on
PATIENCE_S = 4.0


def check(host: str, port: str) -> str | None:
    """Ask the service that listens there; None if it is ready, else the reason why not."""
    try:
        with urllib.request.urlopen(f"http://{EVERYWHERE.get(host, host)}:{port}/health/ready", timeout=PATIENCE_S):
            return None
    except urllib.error.HTTPError as error:
        return f"{error.code}: {error.read(1000).decode(errors='replace')}"
    except OSError as error:
        return str(error)


if __name__ == "__main__":
    if reason := check(os.environ.get("SWIN2SR_HOST", ""), os.environ.get("SWIN2SR_PORT", "8000")):
        sys.exit(reason)
