"""``swin2sr --version``."""

from __future__ import annotations

from typing import Annotated

import typer

from app.version import service_version, torch_version


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"swin2sr-serve {service_version()}, torch {torch_version()}")
        raise typer.Exit


def global_options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """Super-resolution and restoration of images with Swin2SR."""
