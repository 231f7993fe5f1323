"""The commands of ``swin2sr``. Each command imports what takes long to import inside its function."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

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
    failure,
    failures_reported,
    read_settings,
    reason,
    with_request_options,
    with_settings,
)
from app.cli.shard import Shard
from app.cli.variants import evaluate, export, fetch, list_variants
from app.cli.version import global_options
from app.errors import ServiceError
from app.ray.settings import RaySettings
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
        logs.report(f"swin2sr: {reason(error)}", "text")
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
        raise failure(reason(error), report) from None
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
        raise failure(reason(error), report) from None
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

    with failures_reported():
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

    with failures_reported():
        check_folders(folder, output)
        args = UpscaleArgs(
            (str(folder),), output, url, api_key, timeout, force=False, skip=True, jobs=jobs, as_json=as_json
        )
        request = args.options(format=options.pop("format", None), variant=variant, **options)
        settings = None if url else _local_settings(device, precision, model_dir, cache_dir)
        asyncio.run(run(args, request, settings, Console(stderr=True), interval))


def _local_settings(device: str, precision: str, model_dir: Path | None, cache_dir: Path | None) -> Settings:
    """Settings of the service in this process."""
    return read_settings(
        Settings, variants=("x2",), device=device, precision=precision, model_dir=model_dir, cache_dir=cache_dir
    )


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
        raise failure(reason(error)) from None


def train(context: typer.Context) -> None:
    """Train an embedded variant on photos, or fine-tune a released one; --help lists the options."""
    from model.training import __main__ as training  # noqa: PLC0415

    raise typer.Exit(training.main(context.args, program="swin2sr train"))


def openapi() -> None:
    """Print the OpenAPI document, as GET /openapi.json sends it."""
    from app.main import create_app  # noqa: PLC0415

    document = create_app(Settings(variants=("x2",), device="cpu")).openapi()
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
