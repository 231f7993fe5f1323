"""The command line; everything heavy is imported by the command that needs it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.table import Table

from app.settings import Settings

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N", envvar="SWIN2SR_DEVICE")]
ModelDir = Annotated[Path | None, typer.Option(help="folder of own checkpoints", envvar="SWIN2SR_MODEL_DIR")]
VariantName = Annotated[str, typer.Option(help="a variant's name or a task alias; see `swin2sr variants`")]


def build() -> typer.Typer:
    """The commands."""
    app = typer.Typer(
        no_args_is_help=True, add_completion=False, help="Swin2SR: super-resolution and restoration of images."
    )
    app.command("serve")(_with_settings(serve))
    app.command("upscale")(upscale)
    app.command("variants")(list_variants)
    app.command("evaluate")(evaluate)
    app.command("fetch")(fetch)
    return app


def main() -> None:
    """The program ``swin2sr``."""
    build()()


def serve(sample: str, **options: str | bool | None) -> None:
    """Serve over HTTP. What is not given comes from the environment, SWIN2SR_*, or is the default."""
    from app.serving import serve as serve_until_stopped  # noqa: PLC0415 - torch and FastAPI take their time

    settings = _settings(**{name: value for name, value in options.items() if value is not None})
    try:
        status = serve_until_stopped(settings, typer.echo, sample)
    except (ValueError, OSError) as error:
        raise _complaint(str(error)) from None
    raise typer.Exit(status)


def upscale(
    files: Annotated[list[Path], typer.Argument(help="images, or folders of images")],
    output: Annotated[Path, typer.Option("--output", "-o", help="a file for one image, else a folder")],
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
    device: Device = "auto",
    model_dir: ModelDir = None,
) -> None:
    """Upscale images in this process. Goes on after one that fails, and exits with 1 then."""
    from app.local import Job, find_images, upscale_files  # noqa: PLC0415
    from app.schemas import UpscaleOptions  # noqa: PLC0415

    images = find_images(files)
    if not images:
        raise _complaint("there are no images in what was given")
    to_file = len(images) == 1 and output.suffix != "" and not output.is_dir()
    if format is None:
        names = {"jpg": "jpeg", "tif": "tiff"}
        suffix = output.suffix.lstrip(".").lower() if to_file else "png"
        format = names.get(suffix, suffix)  # type: ignore[assignment]  # noqa: A001 - checked as an option below
    try:
        options = UpscaleOptions(
            variant=variant,
            format=format or "png",
            quality=quality,
            metadata=metadata,
            width=width,
            height=height,
            factor=factor,
            ensemble=ensemble,
        )
    except ValidationError as error:
        raise _complaint("; ".join(_sentence(fault, "--") for fault in error.errors())) from None
    settings = _settings(variants=("x2",), device=device, model_dir=model_dir)
    jobs = [Job(image, output if to_file else output / image.name, rename=not to_file) for image in images]
    failures = asyncio.run(upscale_files(jobs, options, settings, Console(stderr=True)))
    raise typer.Exit(1 if failures else 0)


def list_variants(device: Device = "auto", model_dir: ModelDir = None) -> None:
    """What there is, what each is for, and which are here."""
    from app.registry import ModelRegistry  # noqa: PLC0415

    try:
        registry = ModelRegistry(("x2",), model_dir=model_dir, device=device)
    except ValueError as error:
        raise _complaint(str(error)) from None
    table = Table("variant", "here", "aliases", "scale", "what it is for")
    for each in registry.describe_all():
        here = "yes" if registry.is_present(each.name) else "no"
        table.add_row(each.name, here, ", ".join(each.aliases), str(each.scale or "?"), each.summary)
    Console().print(table)


def evaluate(
    folder: Annotated[Path, typer.Argument(help="photos, or HR/ with LR_bicubic/X2/", exists=True, file_okay=False)],
    variant: VariantName = "x2",
    quality: Annotated[int | None, typer.Option(min=1, max=100, help="JPEG quality of the inputs")] = None,
    device: Device = "auto",
    model_dir: ModelDir = None,
) -> None:
    """PSNR and SSIM on a folder, by the published protocol."""
    from app.errors import ServiceError  # noqa: PLC0415
    from app.registry import ModelRegistry  # noqa: PLC0415
    from model.evaluate import evaluate_folder, tabulate  # noqa: PLC0415
    from model.upscaler import Upscaler  # noqa: PLC0415

    try:
        entry = ModelRegistry((variant.lower(),), model_dir=model_dir, device=device).resolve(variant)
        assert entry.path is not None, "resolve refuses what is absent"
        upscaler = Upscaler.from_pretrained(entry.path, device=device)
        typer.echo(f"{entry.name} on {folder}\n")
        typer.echo(tabulate(evaluate_folder(upscaler, folder, quality=quality)))
    except (ValueError, ServiceError) as error:
        raise _complaint(str(error)) from None


def fetch(variant: Annotated[str, typer.Argument(help="an official variant")]) -> None:
    """Say how to get an official variant's weights."""
    from model.variants import VARIANTS  # noqa: PLC0415

    entry = VARIANTS.get(variant)
    if entry is None:
        raise _complaint(f"there is no variant {variant!r}; see `swin2sr variants`")
    if entry.embedded:
        raise _complaint(f"{variant} comes with the package and is never fetched")
    if entry.hub_id:
        way = f"hf download {entry.hub_id} --local-dir MODELS/{variant}"
    else:
        way = f"download {entry.release_file} from {entry.source}/releases to MODELS/{variant}.pth"
    raise _complaint(
        "this version does not download weights itself. Do this, and start the server with --model-dir MODELS:\n"
        f"  {way}"
    )


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """The command with one option for each setting."""
    parameters = [
        inspect.Parameter(
            "sample",
            inspect.Parameter.KEYWORD_ONLY,
            default="photo.jpg",
            annotation=Annotated[str, typer.Option(help="image in the command that is shown to try")],
        ),
        *(_parameter(name, field) for name, field in Settings.model_fields.items()),
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


def _settings(**values: object) -> Settings:
    try:
        return Settings(**{name: value for name, value in values.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        raise _complaint("\n".join(_sentence(fault, "SWIN2SR_") for fault in error.errors())) from None


def _sentence(fault: Any, prefix: str) -> str:  # noqa: ANN401 - pydantic's own dictionary
    name = "".join(f"{prefix}{part.upper() if prefix[0] == 'S' else part}: " for part in map(str, fault["loc"][:1]))
    return f"{name}{fault['msg'].removeprefix('Value error, ')}"


def _complaint(text: str) -> typer.Exit:
    """Say what is wrong on standard error, and end with 1."""
    typer.echo(f"swin2sr: {text}", err=True)
    return typer.Exit(1)


if __name__ == "__main__":
    main()
