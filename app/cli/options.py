"""Options of commands: those that several commands share, and one for each setting."""

from __future__ import annotations

import inspect
import os
import re
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer
from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo

from app import environment
from app.errors import ServiceError
from app.http.settings import PREFIX
from app.ray.settings import RaySettings
from app.schemas import UpscaleOptions, describe_fault
from app.settings import Settings

S = TypeVar("S", bound=Settings)
Report = Callable[[str], None]


def print_error(line: str) -> None:
    """Print a line on standard error."""
    typer.echo(line, err=True)


_NOT_OPTIONS = frozenset({"variant", "timeout_ms"})

Device = Annotated[
    str,
    typer.Option(
        metavar="auto|cpu|cuda|cuda:N",
        help="device of the network; auto uses a GPU if available",
        envvar="SWIN2SR_DEVICE",
    ),
]
Precision = Annotated[
    Literal["auto", "exact", "high", "fast"],
    typer.Option(
        help="exact (float32), high or fast (bfloat16); auto: fast on a GPU, high on a CPU with AMX",
        envvar="SWIN2SR_PRECISION",
    ),
]
ModelDir = Annotated[
    Path | None, typer.Option(help="folder of your own checkpoints, each a variant", envvar="SWIN2SR_MODEL_DIR")
]
CacheDir = Annotated[
    Path | None,
    typer.Option(help="weights cache folder", envvar="SWIN2SR_CACHE_DIR", show_default="the Hugging Face cache"),
]
Url = Annotated[str | None, typer.Option(help="use this server instead of computing locally", envvar="SWIN2SR_URL")]
ApiKey = Annotated[
    str | None,
    typer.Option(help="API key for --url, sent as bearer token", envvar="SWIN2SR_API_KEY", show_default=False),
]


Jobs = Annotated[int, typer.Option("--jobs", "-j", min=1, max=64, help="images processed at a time")]
Json = Annotated[bool, typer.Option("--json", help="print one line of JSON for each image to stdout")]
Timeout = Annotated[float, typer.Option(help="seconds per image, with --url")]


def complete_variant(prefix: str) -> list[str]:
    """Variants and aliases that begin with a prefix, for shell completion."""
    from model.variants import ALIASES, VARIANTS  # noqa: PLC0415

    return [name for name in (*ALIASES, *VARIANTS) if name.startswith(prefix)]


VariantName = Annotated[
    str, typer.Option(help="variant or task alias, see `swin2sr variants`", autocompletion=complete_variant)
]


def with_settings(command: Callable[..., None], settings: type[Settings]) -> Callable[..., None]:
    """Give a command one option for each setting.

    The command gets the options of the command line only: the settings read the environment themselves.
    """
    sample = inspect.Parameter(
        "sample",
        inspect.Parameter.KEYWORD_ONLY,
        default="photo.jpg",
        annotation=Annotated[str, typer.Option(metavar="FILE", help="image path shown in the startup hint")],
    )
    fields = settings.model_fields
    options = [_parameter(name, field, envvar=f"{PREFIX}{name.upper()}") for name, field in fields.items()]
    return _with_options(command, [sample], options)


def with_request_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for each option of ``POST /v1/upscale``.

    They take the place of ``**options`` in its signature. The command gets those of the command line only, so that the
    defaults stay those of the server. The variant and the timeout are the command's own.
    """
    signature = inspect.signature(command, eval_str=True)
    own = [
        each.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for each in signature.parameters.values()
        if each.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    shown = {"format": "by the output's extension, else png"}
    options = [
        _parameter(name, field, shown=shown.get(name))
        for name, field in UpscaleOptions.model_fields.items()
        if name not in _NOT_OPTIONS
    ]
    return _with_options(command, own, options)


def _with_options(
    command: Callable[..., None], own: list[inspect.Parameter], options: list[inspect.Parameter]
) -> Callable[..., None]:
    """A command with its own parameters and with options, of which it gets those of the command line."""
    names = [option.name for option in options]
    context_parameter = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    parameters = [*own, *options, context_parameter]

    def run(context: typer.Context, **values: Any) -> None:  # noqa: ANN401 - see the signature below
        sources = {name: context.get_parameter_source(name) for name in names}
        typed = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
        command(**{name: value for name, value in values.items() if name not in names or name in typed})

    run.__doc__ = command.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def read_settings(kind: type[S], *, report: Report = print_error, **values: object) -> S:
    """Build settings from options and the environment, and print a warning for each misspelt variable.

    Args:
        kind: class of the settings.
        report: shows a line of text.
        values: options by name; None is not passed on.

    Raises:
        typer.Exit: after printing what is wrong: by option if it was typed, else by environment variable.
    """
    for sentence in environment.warnings(os.environ, RaySettings.model_fields):  # has those of the plain service too
        report(f"swin2sr: {sentence}")
    try:
        return kind(**{name: value for name, value in values.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        faults = dict.fromkeys(_settings_fault(kind, values, fault) for fault in error.errors())
        raise failure("\n".join(faults), report) from None


def option_fault(fault: Any) -> str:  # noqa: ANN401 - pydantic's own dictionary
    """A fault of request options, with the option as it is typed."""
    name = str(fault["loc"][0]) if fault["loc"] else ""
    text = describe_fault(fault, UpscaleOptions.model_fields.get(name))
    return f"{option_name(name)}: {text}" if name else text


def option_name(field: str) -> str:
    """The command line's name of an option."""
    return f"--{field.replace('_', '-')}"


def failure(text: str, report: Report = print_error) -> typer.Exit:
    """Print an error message on standard error. Raise what this returns to exit with status 1."""
    report(f"swin2sr: {text}")
    return typer.Exit(1)


def reason(error: Exception) -> str:
    """What went wrong, without the number of an operating system's error."""
    if isinstance(error, OSError) and error.strerror:  # str(error) begins with the number
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


@contextmanager
def failures_reported() -> Iterator[None]:
    """Print what is wrong, and exit with status 1."""
    try:
        yield
    except ValidationError as error:
        raise failure("; ".join(dict.fromkeys(map(option_fault, error.errors())))) from None
    except (ValueError, ServiceError, OSError) as error:
        raise failure(reason(error)) from None


def _parameter(
    name: str, field: FieldInfo, *, envvar: str | None = None, shown: str | None = None
) -> inspect.Parameter:
    """An option for a field; ``shown`` is the default in the help text if it is not that of the field."""
    switch, flag = field.annotation is bool, option_name(name)
    default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
    unset = default in (None, "")
    option = typer.Option(
        f"{flag}/--no-{name.replace('_', '-')}" if switch else flag,
        help=field.description,
        metavar=None if switch else metavar(field),
        envvar=envvar,
        show_default=shown or not unset,
    )
    kind: Any = bool if switch else str | None
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default if switch else None if unset else str(default),
        annotation=Annotated[kind, option],
    )


def metavar(field: FieldInfo) -> str:
    """What can be given for a setting: choices, or a type with its range."""
    bounds = {name: getattr(each, name) for each in field.metadata for name in ("ge", "le") if hasattr(each, name)}
    return "|".join(_choices(field.annotation, bounds))


def _choices(annotation: Any, bounds: dict[str, int]) -> list[str]:  # noqa: ANN401 - a type
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return [str(choice) for choice in parts]
    if origin in (typing.Union, types.UnionType):
        return [each for part in parts if part is not type(None) for each in _choices(part, bounds)]
    if origin is Annotated:
        return _choices(parts[0], bounds)
    if origin is tuple:
        return [f"{_choices(parts[0], {})[0]},..."]
    ranged = annotation in (int, float) and len(bounds) == 2
    names = {int: "INTEGER", float: "NUMBER", Path: "PATH", SecretStr: "SECRET"}
    return [f"{bounds['ge']}..{bounds['le']}" if ranged else names.get(annotation, "TEXT")]


def _settings_fault(kind: type[Settings], values: dict[str, object], fault: Any) -> str:  # noqa: ANN401 - pydantic's own
    """A fault of settings. Each setting is named as the user gave it: as an option or as an environment variable."""

    def given_as(name: str, otherwise: str) -> str:
        variable = f"{PREFIX}{name.upper()}"
        in_environment = [text for each, text in os.environ.items() if each.upper() == variable]
        if values.get(name) is not None and str(values[name]) not in in_environment:
            return option_name(name)
        return variable if in_environment else otherwise

    known = "|".join(sorted((name.upper() for name in kind.model_fields), key=len, reverse=True))
    name = str(fault["loc"][0]) if fault["loc"] else ""
    text = re.sub(
        rf"(?<![\w-])({known})(?![\w-])",
        lambda match: given_as(match[1].lower(), match[1]),
        describe_fault(fault, kind.model_fields.get(name)),
    )
    return f"{given_as(name, PREFIX + name.upper())}: {text}" if name else text
