"""Unknown environment variables with the prefix SWIN2SR_: misspelt settings, and those that Kubernetes injects."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping

from app.http.settings import PREFIX, HttpSettings

CLIENT_VARIABLES = frozenset({"URL", "API_KEY"})
"""Variables of the client's commands, without the prefix."""

SECRET_WORDS = ("KEY", "TOKEN", "SECRET", "AUTH", "PASSWORD")
SECRET_SETTINGS = ("API_KEYS", "API_KEYS_FILE", "ADMIN_TOKEN", "ADMIN_TOKEN_FILE", "METRICS_TOKEN")

SECRET_WORDS_IN_FULL = ("KEYS", "TOKEN", "SECRET", "PASSWORD")
"""Words that a part of a name counts as with one letter more, less or other, or with two letters swapped."""

SIMILARITY = 0.8
"""Ratio of ``difflib`` from which a name counts as a misspelling of another."""

MOST_EDITS = 2
"""Changed letters up to which a name counts as a misspelling of a setting that holds secrets."""

INJECTED = re.compile(r"(.+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")
EXPLANATION = (
    "Kubernetes injects this variable for a Service of that name. Set enableServiceLinks: false in the pod's spec"
)


def warnings(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """One sentence for each unknown variable with the prefix, except those that stop the start of a server."""
    settings = [name.upper() for name in known]
    sentences = []
    for name, setting in _unknown(names, settings):
        if setting == "DTYPE" or _is_injected(setting) or _looks_like_a_secret(setting):
            continue
        near = difflib.get_close_matches(setting, settings, 1, cutoff=SIMILARITY)
        hint = f" Did you mean {PREFIX}{near[0]}?" if near else ""
        sentences.append(f"Unknown setting {name} (ignored).{hint}")
    return sentences


def check(environment: Mapping[str, str], settings: HttpSettings, known: Iterable[str]) -> list[str]:
    """Refuse unknown variables that look like secrets, because a misspelt secret protects nothing.

    Args:
        environment: of this process.
        settings: read from it.
        known: names of all settings, including those for Ray.

    Returns:
        Warnings, one sentence each.

    Raises:
        ValueError: if an unknown variable looks like a secret, also with a misspelt prefix, if Kubernetes injected
            variables for a Service called ``swin2sr``, or if the client's key is set, the service has none, and other
            machines can connect.
    """
    names = [name.upper() for name in known]
    for name, setting in _unknown(environment, names):
        if _is_injected(setting):
            raise ValueError(f"Unknown setting {name}. {EXPLANATION}")
        if _looks_like_a_secret(setting):
            near = difflib.get_close_matches(setting, names, 1, cutoff=SIMILARITY) or difflib.get_close_matches(
                setting, SECRET_SETTINGS, 1, cutoff=0.0
            )
            injected = f" {EXPLANATION}." if INJECTED.fullmatch(setting) else ""
            raise ValueError(
                f"Unknown setting {name}. Its name looks like a secret, and it would not protect the service. The "
                f"closest setting is {PREFIX}{near[0]}. Rename or unset {name}.{injected}"
            )
    for name in environment:
        prefix, _, setting = name.upper().partition("_")
        if setting in SECRET_SETTINGS and 0 < _edits(f"{prefix}_", PREFIX) <= MOST_EDITS:
            raise ValueError(f"{name} is not a setting. Rename it to {PREFIX}{setting}, or unset it.")
    return _check_client_key(environment, settings)


def _is_injected(setting: str) -> bool:
    return bool(re.fullmatch(r"SERVICE_.*|PORT_\d+_.*", setting) and INJECTED.fullmatch(setting))


def _looks_like_a_secret(setting: str) -> bool:
    return (
        any(word in setting for word in SECRET_WORDS)
        or bool(difflib.get_close_matches(setting, SECRET_SETTINGS, 1, cutoff=SIMILARITY))
        or any(_edits(setting, known) <= MOST_EDITS for known in SECRET_SETTINGS)
        or any(_edits(part, word) <= 1 for part in setting.split("_") for word in SECRET_WORDS_IN_FULL)
    )


def _edits(first: str, second: str) -> int:
    """Letters to insert, remove, replace or swap with the next one (optimal string alignment)."""
    before, above = [0] * (len(second) + 1), list(range(len(second) + 1))
    for row, letter in enumerate(first, 1):
        line = [row]
        for column, other in enumerate(second, 1):
            line.append(min(above[column] + 1, line[-1] + 1, above[column - 1] + (letter != other)))
            if row > 1 and column > 1 and first[row - 2 : row] == second[column - 2 : column][::-1]:
                line[-1] = min(line[-1], before[column - 2] + 1)
        before, above = above, line
    return above[-1]


def _unknown(names: Iterable[str], settings: Iterable[str]) -> list[tuple[str, str]]:
    """Unknown variables with the prefix: their names, and the names without the prefix in upper case."""
    known = {*settings, *CLIENT_VARIABLES}
    found = [(name, name.upper().removeprefix(PREFIX)) for name in names if name.upper().startswith(PREFIX)]
    return [(name, setting) for name, setting in found if setting not in known]


def _check_client_key(environment: Mapping[str, str], settings: HttpSettings) -> list[str]:
    name = f"{PREFIX}API_KEY"
    value = next((value for each, value in environment.items() if each.upper() == name), "")
    if not value or settings.keys:
        return []
    text = f"{name} is the key that the client sends. It does not protect the service; {PREFIX}API_KEYS does"
    if settings.is_loopback:
        return [f"{text}. Every user of this machine can use the service."]
    raise ValueError(
        f"{text}. Other machines can connect to HOST {settings.host}: set {PREFIX}API_KEYS, or unset {name}"
    )
