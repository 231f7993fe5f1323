"""Options of the request: in the query, and as text fields of a form."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import QueryParams

from app.errors import InvalidOption
from app.schemas import UpscaleOptions

SIMILARITY = 0.75
"""Ratio of ``difflib`` from which the name of a field counts as a misspelt option."""

NAMED = 5
"""Maximum number of ignored fields that the notice names."""


def with_fields(
    options: UpscaleOptions, fields: Sequence[tuple[str, str]], query: QueryParams
) -> tuple[UpscaleOptions, str]:
    """The options of the query and of a form's text fields. The query takes precedence.

    Args:
        options: of the query, checked.
        fields: names and values of the text fields.
        query: the query's parameters as they were sent.

    Returns:
        All options, and a notice about fields that are ignored; empty if there are none.

    Raises:
        InvalidOption: if the name of a field is a likely misspelling of an option.
        RequestValidationError: if a value is invalid, or two options contradict each other.
    """
    names = list(UpscaleOptions.model_fields)
    unknown = [name for name in dict(fields) if name not in names]
    for name in unknown:
        if near := difflib.get_close_matches(name.strip().lower().replace("-", "_"), names, 1, cutoff=SIMILARITY):
            sentence = f"Unknown option {name[:50]!a} in the form. Did you mean {near[0]!r}?"
            raise InvalidOption(sentence, errors=[sentence])
    known = {name: value for name, value in fields if name in names}
    if known:
        try:
            options = UpscaleOptions.model_validate({**known, **query})
        except ValidationError as error:
            raise RequestValidationError(error.errors()) from None
    overruled = [name for name, value in known.items() if query.get(name, value) != value]
    return options, _notice(unknown, overruled, [*_repeated(query.multi_items()), *_repeated(fields)])


def _repeated(values: Sequence[tuple[str, str]]) -> list[str]:
    """Options with several values."""
    chosen = dict(values)
    return [name for name, value in values if name in UpscaleOptions.model_fields and value != chosen[name]]


def _notice(unknown: list[str], overruled: list[str], repeated: list[str]) -> str:
    more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
    names = ", ".join(ascii(name[:50]) for name in unknown[:NAMED]) + more
    ignored = [f"unknown fields of the form were ignored: {names}"] if unknown else []
    if overruled:
        ignored.append(f"fields of the form were ignored, because the query has them too: {', '.join(overruled)}")
    if repeated:
        ignored.append(f"options with several values, of which the last counts: {', '.join(dict.fromkeys(repeated))}")
    return "; ".join(ignored)
