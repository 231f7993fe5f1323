"""API keys and tokens: their validation, and the files that hold them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, SecretStr

SHORTEST_SECRET = 8
"""Minimum length of a key or token, characters."""

KEY_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def check_secret(value: SecretStr) -> SecretStr:
    """Refuse a secret that is too short, or that a header cannot hold. The message never contains it.

    Raises:
        ValueError: if it is too short, or has spaces or characters other than printable ASCII.
    """
    text = value.get_secret_value()
    if len(text) < SHORTEST_SECRET or not all("!" <= character <= "~" for character in text):
        raise ValueError(
            f"a secret needs at least {SHORTEST_SECRET} characters of printable ASCII without spaces; "
            "create one with: openssl rand -hex 24"
        )
    return value


Secret = Annotated[SecretStr, AfterValidator(check_secret)]


def name_keys(keys: tuple[SecretStr, ...]) -> dict[str, SecretStr]:
    """Name keys ``key-1``, ``key-2``, and so on."""
    return {f"key-{number}": key for number, key in enumerate(dict.fromkeys(keys), 1)}


def read_keys(path: Path) -> dict[str, SecretStr]:
    """Read a file with one key a line: ``name:key``, or ``key``.

    Empty lines and lines that start with ``#`` are skipped. Keys without a name are named ``key-1``, ``key-2``, ...

    Returns:
        The keys by name, in the order of the file.

    Raises:
        ValueError: if the file cannot be read, contains no key, or a line is not a key. The message has the number of
            the line, never its text.
    """
    keys: dict[str, SecretStr] = {}
    unnamed = 0
    for number, line in _lines(path):
        name, colon, key = line.partition(":")
        if not colon:
            unnamed += 1
            name, key = f"key-{unnamed}", line
        elif not KEY_NAME.fullmatch(name):
            raise ValueError(
                f"{path}, line {number}: a name must have 1 to 64 letters, digits, '_', '.' or '-'. Write a key that "
                "contains ':' with a name in front of it (name:key)"
            )
        try:
            secret = check_secret(SecretStr(key))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        if name in keys:
            raise ValueError(f"{path}, line {number}: the name {name} is used twice")
        if secret in keys.values():
            raise ValueError(f"{path}, line {number}: the key is also on another line")
        keys[name] = secret
    if not keys:
        raise ValueError(f"{path} contains no key. Add a line with a key, or with name:key")
    return keys


def read_token(path: Path) -> SecretStr:
    """Read a file whose only line is a token.

    Raises:
        ValueError: if the file cannot be read, or does not contain exactly one valid token.
    """
    lines = [line for _, line in _lines(path)]
    if len(lines) != 1:
        raise ValueError(f"{path} has {len(lines)} lines with text. The token must be the only one")
    try:
        return check_secret(SecretStr(lines[0]))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file with their numbers, stripped, without empty lines and comments."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file in UTF-8") from None
    for number, line in enumerate(text.split("\n"), 1):
        content = line.strip()
        if content and not content.startswith("#"):
            yield number, content
