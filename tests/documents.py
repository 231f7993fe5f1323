"""The Markdown documents: their code blocks, tables and links. ``python -m tests.documents`` writes the tables anew."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from pathlib import Path

from app import errors
from app.ray.settings import RaySettings
from app.schemas import UpscaleOptions
from app.settings import Settings
from model.variants import VARIANTS, embedded_path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
CONFIGURATION = ROOT / "docs" / "configuration.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").glob("*.md"))]

RUN = {"sh", "python"}
"""Languages of blocks that a test runs."""

SHOWN = {"console", "text", "yaml", "json", "nginx", "ini", "http"}
"""Languages of blocks that need what tests do not have, for example Docker, or that are no commands."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language and its text."""

    language: str
    text: str


def blocks(document):
    """The fenced blocks of a document."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", document.read_text("utf-8"), re.M | re.S)
    return [Block(language, text) for language, text in found]


def section(document, heading):
    """The text below a heading, up to the next heading of the same level or a higher one."""
    level = heading.split(" ")[0]
    text = document.read_text("utf-8").split(f"\n{heading}\n", 1)[1]
    return re.split(rf"\n#{{1,{len(level)}}} ", text, maxsplit=1)[0]


def rows(document, heading):
    """The body of the first table below a heading."""
    table = re.search(r"(?:^\|.*\n?)+", section(document, heading), re.M)[0]
    return table.strip().splitlines()[2:]


def shown(value):
    """A default as the tables show it."""
    if value in (None, ()):
        return ""
    text = ",".join(value) if isinstance(value, tuple) else str(value).lower() if isinstance(value, bool) else value
    return f"`{text}`"


def leaves(error):
    """The errors that reach clients as problem documents."""
    if not (error.__name__.endswith(("ServiceError", "RequestError", "ServerError")) or issubclass(error, OSError)):
        yield error
    for child in error.__subclasses__():
        yield from leaves(child)


def _settings(names, fields):
    return [f"| `{name.upper()}` | {shown(fields[name].default)} | {fields[name].description} |" for name in names]


def tables():
    """The tables that the code determines: document and heading, and the expected rows."""
    options = [
        f"| `{name}` | {shown(field.default)} | {field.description} |"
        for name, field in UpscaleOptions.model_fields.items()
    ]
    homes = {True: "in the package", False: "official"}
    variants = [
        f"| `{each.name}` | {each.scale} | "
        f"{'to come' if each.embedded and not embedded_path(each.name) else homes[each.embedded]} | {each.summary} |"
        for each in VARIANTS.values()
    ]
    meanings = [
        f"| {error.status} | `{error.code}` | {' '.join(inspect.getdoc(error).split()).replace('``', '`')} |"
        for error in sorted(leaves(errors.ServiceError), key=lambda error: error.status)
    ]
    ray = [name for name in RaySettings.model_fields if name not in Settings.model_fields]
    return {
        (README, "## Options of `POST /v1/upscale`"): options,
        (README, "## Variants"): variants,
        (CONFIGURATION, "## Settings"): _settings(Settings.model_fields, Settings.model_fields),
        (CONFIGURATION, "### Ray"): _settings(ray, RaySettings.model_fields),
        (CONFIGURATION, "## Errors"): meanings,
    }


def write_tables():
    """Replace the tables in the documents by those of the code."""
    for (document, heading), expected in tables().items():
        text = document.read_text("utf-8")
        start = text.index(f"\n{heading}\n")
        table = re.compile(r"^(\|.*\n\| ---.*\n)(?:.*\n)*?(?=^$|\Z)", re.M)
        found = table.search(text, start)
        document.write_text(
            text[: found.start()] + found[1] + "\n".join(expected) + "\n" + text[found.end() :], "utf-8"
        )


if __name__ == "__main__":
    write_tables()
