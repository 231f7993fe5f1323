"""The command line; everything heavy is imported by the command that needs it."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.errors import ServiceError
from app.ray.settings import RaySettings
from app.schemas import VariantDescription
from app.settings import Settings

S = TypeVar("S", bound=Settings)

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N", envvar="SWIN2SR_DEVICE")]
ModelDir = Annotated[Path | None, typer.Option(help="folder of own checkpoints", envvar="SWIN2SR_MODEL_DIR")]
CacheDir = Annotated[Path | None, typer.Option(help="where fetched weights lie", envvar="SWIN2SR_CACHE_DIR")]
Url = Annotated[str | None, typer.Option(help="of a server, in place of this process", envvar="SWIN2SR_URL")]

ApiKey = Annotated[str | None, typer.Option(help="where the server wants one", envvar="SWIN2SR_API_KEY")]


def _complete_variant(beginning: str) -> list[str]:
    """Names and aliases for a shell that completes what was begun."""
    from model.variants import ALIASES, VARIANTS  # noqa: PLC0415

    return [name for name in (*ALIASES, *VARIANTS) if name.startswith(beginning)]


VariantName = Annotated[
    str,
    typer.Option(help="a variant's name or a task alias; see `swin2sr variants`", autocompletion=_complete_variant),
]


def build() -> typer.Typer:
    """The commands."""
    app = typer.Typer(no_args_is_help=True, help="Swin2SR: super-resolution and restoration of images.")
    app.command("serve")(_with_settings(serve, Settings))
    app.command("ray")(_with_settings(serve_on_ray, RaySettings))
    app.command("upscale")(upscale)
    app.command("variants")(list_variants)
    app.command("evaluate")(evaluate)
    app.command("fetch")(fetch)
    app.command("openapi")(openapi)
    app.command("bench")(bench)
    return app


def main() -> None:
    """Carry out the command that this process was started with."""
    build()()


def serve(sample: str, **options: str | bool | None) -> None:
    """Serve over HTTP. What is not given comes from the environment, SWIN2SR_*, or is the default."""
    from app import server  # noqa: PLC0415 - torch and FastAPI take their time

    settings = _settings(Settings, **options)
    try:
        status = server.serve(settings, typer.echo, sample)
    except (ValueError, OSError) as error:
        raise _complaint(_reason(error)) from None
    server.leave(status)


def serve_on_ray(sample: str, **options: str | bool | None) -> None:
    """Serve on Ray: several replicas, on this machine or on the cluster that RAY_ADDRESS names."""
    from app.ray.deployment import serve as serve_until_stopped  # noqa: PLC0415

    settings = _settings(RaySettings, **options)
    try:
        status = serve_until_stopped(settings, typer.echo, sample)
    except (ValueError, ServiceError, OSError, RuntimeError) as error:
        raise _complaint(_reason(error)) from None
    raise typer.Exit(status)


def upscale(
    places: Annotated[list[str], typer.Argument(help="images, folders, patterns such as 'photos/**/*.jpg', or -")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="a file for one image, - for standard output, else a folder; default: here"
        ),
    ] = None,
    *,
    variant: VariantName = "x2",
    format: Annotated[  # noqa: A002 - the option's name
        Literal["png", "jpeg", "webp", "tiff", "avif", "same"] | None, typer.Option(help="by the output's name, or png")
    ] = None,
    quality: Annotated[int, typer.Option(min=1, max=100, help="of lossy formats")] = 95,
    metadata: Annotated[Literal["keep", "strip"], typer.Option(help="EXIF, ICC profile, XMP")] = "keep",
    width: Annotated[int | None, typer.Option(min=1, help="reduce to this width, aspect kept")] = None,
    height: Annotated[int | None, typer.Option(min=1, help="reduce to this height, aspect kept")] = None,
    factor: Annotated[float | None, typer.Option(help="reduce to this multiple of the input")] = None,
    ensemble: Annotated[bool, typer.Option(help="average over eight flips and rotations")] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="overwrite files")] = False,
    skip: Annotated[bool, typer.Option("--skip-existing", help="leave out images whose result is there")] = False,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, max=64, help="images at once")] = 4,
    as_json: Annotated[bool, typer.Option("--json", help="a line of JSON for each image, on standard output")] = False,
    url: Url = None,
    api_key: ApiKey = None,
    timeout: Annotated[float, typer.Option(help="seconds that a server may take for an image")] = 3600.0,
    device: Device = "auto",
    model_dir: ModelDir = None,
    cache_dir: CacheDir = None,
) -> None:
    """Upscale images, in this process or on a server. Goes on after one that fails, and exits with 1 then.

    Results are named after the image and the variant, sub-folders are kept, and nothing is overwritten without --force.
    """
    from app.cli.upscale import Order, carry_out  # noqa: PLC0415

    wishes = {"quality": quality, "metadata": metadata, "width": width, "height": height, "factor": factor}
    order = Order(tuple(places), output, url, api_key, timeout, force=force, skip=skip, jobs=jobs, as_json=as_json)
    try:
        options = order.options(variant=variant, format=format, ensemble=ensemble, **wishes)
        settings = (
            None
            if url
            else _settings(Settings, variants=("x2",), device=device, model_dir=model_dir, cache_dir=cache_dir)
        )
        failures = asyncio.run(carry_out(order, options, settings, Console(stderr=True)))
    except ValidationError as error:
        raise _complaint("; ".join(_sentence(fault, "--") for fault in error.errors())) from None
    except (ValueError, ServiceError, OSError) as error:
        raise _complaint(_reason(error)) from None
    raise typer.Exit(1 if failures else 0)


def list_variants(
    device: Device = "auto",
    model_dir: ModelDir = None,
    cache_dir: CacheDir = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """What there is, what each is for, and which are here, or on a server."""
    try:
        described = _described(device, model_dir, cache_dir) if url is None else _described_by(url, api_key)
    except (ValueError, ServiceError, OSError) as error:
        raise _complaint(_reason(error)) from None
    table = Table("variant", "here" if url is None else "there", "aliases", "scale", "what it is for")
    for each in described:
        here = "yes" if each.available else "no" if each.state == "absent" else each.state
        table.add_row(each.name, here, ", ".join(each.aliases), str(each.scale or "?"), each.summary)
    console = Console()
    console.print(table)
    if url is None and any(each.state == "absent" and not each.available for each in described):
        console.print("swin2sr fetch NAME brings an official one that is not here.")
    for each in described:
        if each.state in ("loading", "failed") and each.reason:
            console.print(Text(f"{each.name}: {each.reason}"), soft_wrap=True)


def _described(device: str, model_dir: Path | None, cache_dir: Path | None) -> list[VariantDescription]:
    """The variants of this machine."""
    from app.variants.registry import ModelRegistry  # noqa: PLC0415

    official = _settings(Settings, cache_dir=cache_dir).official_weights()
    return ModelRegistry(("x2",), model_dir=model_dir, official=official, device=device).describe_all()


def _described_by(url: str, api_key: str | None) -> list[VariantDescription]:
    """The variants of a server."""
    from app.client import Client  # noqa: PLC0415

    with Client(url, api_key=api_key) as client:
        return client.variants().variants


def evaluate(
    folder: Annotated[Path, typer.Argument(help="photos, or HR/ with LR_bicubic/X2/", exists=True, file_okay=False)],
    *,
    variant: VariantName = "x2",
    quality: Annotated[int | None, typer.Option(min=1, max=100, help="JPEG quality of the inputs")] = None,
    device: Device = "auto",
    model_dir: ModelDir = None,
    cache_dir: CacheDir = None,
) -> None:
    """PSNR and SSIM on a folder, by the published protocol."""
    from app.variants.catalogue import Catalogue  # noqa: PLC0415
    from model.evaluate import evaluate_folder, tabulate  # noqa: PLC0415
    from model.upscaler import Upscaler, find_device  # noqa: PLC0415

    settings = _settings(Settings, device=device, model_dir=model_dir, cache_dir=cache_dir)
    try:
        catalogue = Catalogue(settings.model_dir, find_device(device).type, settings.official_weights())
        entry = catalogue.resolve(variant)
        assert entry.path is not None, "resolve refuses what is absent"
        catalogue.verify(entry.name)
        upscaler = Upscaler.from_pretrained(entry.path, device=device)
        typer.echo(f"{entry.name} on {folder}\n")
        typer.echo(tabulate(evaluate_folder(upscaler, folder, quality=quality)))
    except (ValueError, ServiceError, OSError) as error:
        raise _complaint(_reason(error)) from None


def fetch(
    names: Annotated[
        list[str], typer.Argument(metavar="VARIANT...", help="official variants", autocompletion=_complete_variant)
    ],
    cache_dir: CacheDir = None,
) -> None:
    """Download the authors' weights, verified; what broke off goes on where it stopped. Exits with 1 if one fails."""
    from app.cli.fetch import fetch_all  # noqa: PLC0415

    official = _settings(Settings, cache_dir=cache_dir).official_weights()
    faults = fetch_all(names, official, Console(stderr=True), typer.echo)
    if faults:
        raise _complaint("\nswin2sr: ".join(faults))


def bench(
    *,
    checkpoint: Annotated[Path | None, typer.Option(help="lightweight x2 weights; random ones without it")] = None,
    device: Device = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="of a forward pass on a CPU; the CPU quota")] = None,
    runs: Annotated[int, typer.Option(min=1, help="measurements of each side")] = 5,
    only: Annotated[list[str] | None, typer.Option(help="a section of the table; may be repeated")] = None,
    json: Annotated[Path | None, typer.Option(help="file to write the results to")] = None,
) -> None:
    """How fast this is here, alone and as a service, over other runtimes and over what the machine can do."""
    from app.bench.service import run  # noqa: PLC0415
    from app.cgroup import usable_cpus  # noqa: PLC0415
    from model.bench.sections import Bench  # noqa: PLC0415
    from model.upscaler import find_device  # noqa: PLC0415

    try:
        run(Bench(find_device(device), threads or usable_cpus(), runs, checkpoint), only, json)
    except (ValueError, RuntimeError) as error:
        raise _complaint(_reason(error)) from None


def openapi() -> None:
    """Print the description of the HTTP interface, as GET /openapi.json has it."""
    from app.main import create_app  # noqa: PLC0415

    document = create_app(Settings(variants=("x2",), device="cpu")).openapi()
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))


def _with_settings(command: Callable[..., None], settings: type[Settings]) -> Callable[..., None]:
    """The command with one option for each setting."""
    parameters = [
        inspect.Parameter(
            "sample",
            inspect.Parameter.KEYWORD_ONLY,
            default="photo.jpg",
            annotation=Annotated[str, typer.Option(help="image in the command that is shown to try")],
        ),
        *(_parameter(name, field) for name, field in settings.model_fields.items()),
    ]

    def run(**options: Any) -> None:  # noqa: ANN401 - typer reads the signature below
        command(**options)

    run.__doc__ = command.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
    shown = "" if default in (None, "", False) else f" (default: {default})"
    flag = f"--{name.replace('_', '-')}"
    kind: Any = str | None
    if field.annotation is bool:
        kind, flag = bool | None, f"{flag}/--no-{flag.removeprefix('--')}"
    option = typer.Option(flag, help=f"{field.description}{shown}", show_default=False)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option])


def _settings(kind: type[S], **values: object) -> S:
    for sentence in RaySettings.mistaken(os.environ):  # which has those of the plain service too
        typer.echo(f"swin2sr: {sentence}", err=True)
    try:
        return kind(**{name: value for name, value in values.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        raise _complaint("\n".join(_sentence(fault, "SWIN2SR_") for fault in error.errors())) from None


def _sentence(fault: Any, prefix: str) -> str:  # noqa: ANN401 - pydantic's own dictionary
    name = "".join(f"{prefix}{part.upper() if prefix[0] == 'S' else part}: " for part in map(str, fault["loc"][:1]))
    return f"{name}{fault['msg'].removeprefix('Value error, ')}"


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:  # whose text begins with a number
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def _complaint(text: str) -> typer.Exit:
    """Say what is wrong on standard error, and end with 1."""
    typer.echo(f"swin2sr: {text}", err=True)
    return typer.Exit(1)
