"""The commands of ``swin2sr`` about variants and their weights: list, measure, export, download."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.box import MINIMAL
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from app.cli.options import (
    ApiKey,
    CacheDir,
    Device,
    ModelDir,
    Precision,
    Url,
    VariantName,
    complete_variant,
    failure,
    failures_reported,
    read_settings,
)
from app.schemas import VariantDescription
from app.settings import Settings


def list_variants(
    device: Device = "auto",
    model_dir: ModelDir = None,
    cache_dir: CacheDir = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """List variants and whether their weights are available locally (or on --url)."""
    with failures_reported():
        described = _described(device, model_dir, cache_dir) if url is None else _described_by(url, api_key)
    columns = [Column(name, overflow="fold") for name in ("variant", "available", "aliases", "scale", "description")]
    table = Table(*columns, box=MINIMAL, pad_edge=False)
    for each in described:
        available = "yes" if each.available else "no" if each.state == "absent" else each.state
        table.add_row(each.name, available, ", ".join(each.aliases), str(each.scale or "?"), each.summary)
    console = Console()
    console.print(table)
    if url is None and any(each.state == "absent" and not each.available for each in described):
        console.print("Download missing official weights with: swin2sr fetch NAME")
    for each in described:
        if each.state in ("loading", "failed") and each.reason:
            console.print(Text(f"{each.name}: {each.reason}"), soft_wrap=True)


def _described(device: str, model_dir: Path | None, cache_dir: Path | None) -> list[VariantDescription]:
    """Variants of this machine."""
    from app.variants.registry import ModelRegistry  # noqa: PLC0415

    official = read_settings(Settings, cache_dir=cache_dir).official_weights()
    return ModelRegistry(("x2",), model_dir=model_dir, official=official, device=device).describe_all()


def _described_by(url: str, api_key: str | None) -> list[VariantDescription]:
    """Variants of a server."""
    from app.client import Client  # noqa: PLC0415

    with Client(url, api_key=api_key) as client:
        return client.variants().variants


def evaluate(
    folder: Annotated[
        Path, typer.Argument(help="folder of photos, or of HR/ and LR_bicubic/X2/", exists=True, file_okay=False)
    ],
    *,
    variant: VariantName = "x2",
    quality: Annotated[
        int | None, typer.Option(min=1, max=100, help="JPEG quality of the inputs, 1-100", show_default="no JPEG")
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    model_dir: ModelDir = None,
    cache_dir: CacheDir = None,
) -> None:
    """Measure PSNR and SSIM on a folder, with the protocol of the published results."""
    from model.evaluate import evaluate_folder, tabulate  # noqa: PLC0415
    from model.upscaler import Upscaler, find_device  # noqa: PLC0415

    settings = read_settings(Settings, device=device, precision=precision, model_dir=model_dir, cache_dir=cache_dir)
    with failures_reported():
        name, path = _verified(variant, settings, find_device(device).type)
        upscaler = Upscaler.from_pretrained(path, device, precision)
        typer.echo(f"{name} on {folder}, precision {upscaler.precision}\n")
        typer.echo(tabulate(evaluate_folder(upscaler, folder, quality=quality)))


def _verified(variant: str, settings: Settings, device: str) -> tuple[str, Path]:
    """The name of a variant on this machine, and its weights, whose digest is right.

    Raises:
        ValueError, ServiceError, OSError: if there are none.
    """
    from app.variants.catalogue import Catalogue  # noqa: PLC0415

    catalogue = Catalogue(settings.model_dir, device, settings.official_weights())
    found = catalogue.resolve(variant, serves=False)
    assert found.path is not None, "resolve raises for absent weights"
    catalogue.verify(found)
    return found.name, found.path


def export(
    variant: Annotated[str, typer.Argument(metavar="VARIANT", help="variant", autocompletion=complete_variant)],
    file: Annotated[Path, typer.Argument(help="file ending in .onnx, .pth or .safetensors", dir_okay=False)],
    *,
    model_dir: ModelDir = None,
    cache_dir: CacheDir = None,
) -> None:
    """Write a variant's network as ONNX, or in the official layout as .pth or .safetensors."""
    from model.checkpoints import load_network  # noqa: PLC0415
    from model.export import export as write  # noqa: PLC0415

    settings = read_settings(Settings, model_dir=model_dir, cache_dir=cache_dir)
    with failures_reported():
        name, path = _verified(variant, settings, "cpu")
        network = load_network(path)
        write(network, file)
    typer.echo(f"{name} written to {file}")
    if network.config.is_refined and file.suffix == ".pth":
        typer.echo("a .pth file has no back-projection and no range limit: flat colours are not exact; .onnx has them")


def fetch(
    names: Annotated[
        list[str], typer.Argument(metavar="VARIANT...", help="official variants", autocompletion=complete_variant)
    ],
    cache_dir: CacheDir = None,
) -> None:
    """Download official weights (SHA-256 verified). Exits with status 1 if a download fails."""
    from app.cli.fetch import fetch_all  # noqa: PLC0415

    official = read_settings(Settings, cache_dir=cache_dir).official_weights()
    faults = fetch_all(names, official, Console(stderr=True), typer.echo)
    if faults:
        raise failure("\nswin2sr: ".join(faults))
