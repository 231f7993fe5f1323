"""The commands of ``swin2sr``. Each command imports what takes long to import inside its function."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.box import MINIMAL
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from app import logs
from app.cli.options import (
    ApiKey,
    CacheDir,
    Device,
    Jobs,
    Json,
    ModelDir,
    Precision,
    Report,
    Timeout,
    Url,
    VariantName,
    complete_variant,
    failure,
    option_fault,
    read_settings,
    with_request_options,
    with_settings,
)
from app.cli.shard import Shard
from app.cli.version import global_options
from app.errors import ServiceError
from app.ray.settings import RaySettings
from app.schemas import VariantDescription
from app.settings import Settings

_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


def build() -> typer.Typer:
    """Build the command line application."""
    app = typer.Typer(no_args_is_help=True, help="Super-resolution and restoration of images with Swin2SR.")
    app.callback()(global_options)
    app.command("serve")(with_settings(serve, Settings))
    app.command("ray")(with_settings(serve_on_ray, RaySettings))
    app.command("upscale")(with_request_options(upscale))
    app.command("watch")(with_request_options(watch))
    app.command("variants")(list_variants)
    app.command("evaluate")(evaluate)
    app.command("export")(export)
    app.command("fetch")(fetch)
    app.command("openapi")(openapi)
    app.command("bench")(bench)
    app.command("train", add_help_option=False, context_settings=_PASSED_ON)(train)
    return app


def main() -> None:
    """Run the command that this process was started with.

    With LOG_FORMAT=json, servers report faults of the command line as JSON too.
    """
    typed = re.search(r"--log-format[= ](\w+)", " ".join(sys.argv))
    options = {"log_format": typed[1]} if typed else {}
    if sys.argv[1:2] not in (["serve"], ["ray"]) or logs.chosen_format(options.get("log_format"), os.environ) != "json":
        _run()
        return
    try:
        sys.exit(build()(standalone_mode=False))
    except Exception as error:
        if not hasattr(error, "format_message"):  # Typer's errors have it; their class depends on Typer's version
            raise
        failure(error.format_message(), _reporter(options))
        sys.exit(getattr(error, "exit_code", 1))


def _run() -> None:
    """Run the command. If its output cannot be written, the error is one sentence."""
    try:
        build()()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        logs.report(f"swin2sr: {_reason(error)}", "text")
        os._exit(1)  # the interpreter would try to write the output again


def serve(sample: str, **options: str | bool | None) -> None:
    """Start the HTTP server. Options override SWIN2SR_* environment variables."""
    from app import server  # noqa: PLC0415 - importing torch and FastAPI takes seconds

    report = _reporter(options)
    settings = read_settings(Settings, report=report, **options)
    try:
        status = server.serve(settings, logs.announce, sample)
    except (ValueError, OSError) as error:
        logs.finish()
        raise failure(_reason(error), report) from None
    server.leave(status)


def serve_on_ray(sample: str, **options: str | bool | None) -> None:
    """Start the HTTP server as several replicas on Ray: on this machine, or on the cluster at RAY_ADDRESS."""
    from app.ray.deployment import serve as serve_until_stopped  # noqa: PLC0415

    report = _reporter(options)
    settings = read_settings(RaySettings, report=report, **options)
    logs.configure(settings.log_format)
    try:
        status = serve_until_stopped(settings, logs.announce, sample)
    except (ValueError, ServiceError, OSError, RuntimeError) as error:
        logs.finish()
        raise failure(_reason(error), report) from None
    logs.leave(status)


def _reporter(options: Mapping[str, object]) -> Report:
    """Shows lines before the log is configured, in the format that was chosen for it."""
    return partial(logs.report, log_format=logs.chosen_format(options.get("log_format"), os.environ))


def upscale(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES...",
            help="images, folders, patterns such as 'photos/**/*.jpg' or 's3://bucket/in/*.jpg', or - for stdin",
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="file for one image, - for stdout, else a folder; may be an s3:// address",
            show_default="the current folder",
        ),
    ] = None,
    *,
    variant: VariantName = "x2",
    force: Annotated[bool, typer.Option("--force", "-f", help="overwrite existing files")] = False,
    skip: Annotated[bool, typer.Option("--skip-existing", help="skip images whose output file exists")] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="also write an HTML page with a slider between before and after")
    ] = False,
    shard: Annotated[
        str | None, typer.Option(metavar="K/N", help="upscale only the K-th of N parts, by a hash of the file name")
    ] = None,
    jobs: Jobs = 4,
    as_json: Json = False,
    url: Url = None,
    api_key: ApiKey = None,
    timeout: Timeout = 3600.0,
    device: Device = "auto",
    precision: Precision = "auto",
    model_dir: ModelDir = None,
    cache_dir: CacheDir = None,
    **options: Any,  # noqa: ANN401 - one for each option of a request
) -> None:
    """Upscale images locally or on a server. Continues after failures and exits with status 1 if there were any.

    Output files are named after the image and the variant, and sub-folders are kept.
    """
    from app.cli.upscale import UpscaleArgs, parse_output, run  # noqa: PLC0415

    with _failures_reported():
        args = UpscaleArgs(
            tuple(inputs), parse_output(output), url, api_key, timeout, force=force, skip=skip, jobs=jobs,
            as_json=as_json, compare=compare, shard=Shard.parse(shard) if shard else None,
        )  # fmt: skip
        request = args.options(format=options.pop("format", None), variant=variant, **options)
        settings = None if url else _local_settings(device, precision, model_dir, cache_dir)
        failures = asyncio.run(run(args, request, settings, Console(stderr=True)))
    raise typer.Exit(1 if failures else 0)


def watch(
    folder: Annotated[Path, typer.Argument(help="folder to watch, with its sub-folders", exists=True, file_okay=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="folder for the results")],
    *,
    variant: VariantName = "x2",
    interval: Annotated[float, typer.Option(min=0.1, help="seconds between two looks at the folder")] = 2.0,
    jobs: Jobs = 4,
    as_json: Json = False,
    url: Url = None,
    api_key: ApiKey = None,
    timeout: Timeout = 3600.0,
    device: Device = "auto",
    precision: Precision = "auto",
    model_dir: ModelDir = None,
    cache_dir: CacheDir = None,
    **options: Any,  # noqa: ANN401 - one for each option of a request
) -> None:
    """Upscale images as they arrive in a folder, until the command is stopped with Ctrl-C or SIGTERM.

    A file counts as complete when it has stopped growing. Images that have an output file are skipped, so that a
    restart continues where the last run stopped.
    """
    from app.cli.upscale import UpscaleArgs  # noqa: PLC0415
    from app.cli.watch import check_folders, run  # noqa: PLC0415

    with _failures_reported():
        check_folders(folder, output)
        args = UpscaleArgs(
            (str(folder),), output, url, api_key, timeout, force=False, skip=True, jobs=jobs, as_json=as_json
        )
        request = args.options(format=options.pop("format", None), variant=variant, **options)
        settings = None if url else _local_settings(device, precision, model_dir, cache_dir)
        asyncio.run(run(args, request, settings, Console(stderr=True), interval))


@contextmanager
def _failures_reported() -> Iterator[None]:
    """Print what is wrong, and exit with status 1."""
    try:
        yield
    except ValidationError as error:
        raise failure("; ".join(dict.fromkeys(map(option_fault, error.errors())))) from None
    except (ValueError, ServiceError, OSError) as error:
        raise failure(_reason(error)) from None


def _local_settings(device: str, precision: str, model_dir: Path | None, cache_dir: Path | None) -> Settings:
    """Settings of the service in this process."""
    return read_settings(
        Settings, variants=("x2",), device=device, precision=precision, model_dir=model_dir, cache_dir=cache_dir
    )


def list_variants(
    device: Device = "auto",
    model_dir: ModelDir = None,
    cache_dir: CacheDir = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """List variants and whether their weights are available locally (or on --url)."""
    try:
        described = _described(device, model_dir, cache_dir) if url is None else _described_by(url, api_key)
    except (ValueError, ServiceError, OSError) as error:
        raise failure(_reason(error)) from None
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
    from app.variants.catalogue import Catalogue  # noqa: PLC0415
    from model.evaluate import evaluate_folder, tabulate  # noqa: PLC0415
    from model.upscaler import Upscaler, find_device  # noqa: PLC0415

    settings = read_settings(Settings, device=device, precision=precision, model_dir=model_dir, cache_dir=cache_dir)
    try:
        catalogue = Catalogue(settings.model_dir, find_device(device).type, settings.official_weights())
        found = catalogue.resolve(variant, serves=False)
        assert found.path is not None, "resolve raises for absent weights"
        catalogue.verify(found)
        upscaler = Upscaler.from_pretrained(found.path, device, precision)
        typer.echo(f"{found.name} on {folder}, precision {upscaler.precision}\n")
        typer.echo(tabulate(evaluate_folder(upscaler, folder, quality=quality)))
    except (ValueError, ServiceError, OSError) as error:
        raise failure(_reason(error)) from None


def export(
    variant: Annotated[str, typer.Argument(metavar="VARIANT", help="variant", autocompletion=complete_variant)],
    file: Annotated[Path, typer.Argument(help="file ending in .onnx, .pth or .safetensors", dir_okay=False)],
    *,
    model_dir: ModelDir = None,
    cache_dir: CacheDir = None,
) -> None:
    """Write a variant's network as ONNX, or in the official layout as .pth or .safetensors."""
    from app.variants.catalogue import Catalogue  # noqa: PLC0415
    from model.checkpoints import load_network  # noqa: PLC0415
    from model.export import export as write  # noqa: PLC0415

    settings = read_settings(Settings, model_dir=model_dir, cache_dir=cache_dir)
    try:
        catalogue = Catalogue(settings.model_dir, "cpu", settings.official_weights())
        found = catalogue.resolve(variant, serves=False)
        assert found.path is not None, "resolve raises for absent weights"
        catalogue.verify(found)
        network = load_network(found.path)
        write(network, file)
    except (ValueError, ServiceError, OSError) as error:
        raise failure(_reason(error)) from None
    typer.echo(f"{found.name} written to {file}")
    if network.config.is_refined and file.suffix == ".pth":
        typer.echo("a .pth file has no back-projection and no range limit: its images differ a little; .onnx has them")


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


def bench(
    *,
    checkpoint: Annotated[
        Path | None, typer.Option(help="lightweight-x2 weights", show_default="random weights")
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="threads of a forward pass on a CPU", show_default="the CPU quota")
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="measurements per row")] = 5,
    only: Annotated[list[str] | None, typer.Option(help="section to run; may be repeated", show_default="all")] = None,
    json: Annotated[Path | None, typer.Option(help="file for the results as JSON")] = None,
) -> None:
    """Benchmark the network and the service against other runtimes and the hardware limit."""
    from app.bench.service import run  # noqa: PLC0415
    from app.cgroup import usable_cpus  # noqa: PLC0415
    from model.bench.sections import Bench  # noqa: PLC0415
    from model.upscaler import find_device  # noqa: PLC0415

    try:
        run(Bench(find_device(device), threads or usable_cpus(), runs, checkpoint, precision=precision), only, json)
    except (ValueError, RuntimeError) as error:
        raise failure(_reason(error)) from None


def train(context: typer.Context) -> None:
    """Train an embedded variant on photos, or fine-tune a released one; --help lists the options."""
    from model.training import __main__ as training  # noqa: PLC0415

    raise typer.Exit(training.main(context.args, program="swin2sr train"))


def openapi() -> None:
    """Print the OpenAPI document, as GET /openapi.json sends it."""
    from app.main import create_app  # noqa: PLC0415

    document = create_app(Settings(variants=("x2",), device="cpu")).openapi()
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:  # str(error) begins with the number
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)
