"""The ``swin2sr fetch`` command: downloads official weights, with a bar on a terminal and lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich import progress
from rich.console import Console
from rich.text import Text

from model.official.fetch import FetchError, OfficialWeights, Step, megabytes
from model.variants import ALIASES, VARIANTS, Variant


def fetch_all(
    names: Sequence[str], official: OfficialWeights, console: Console, say: Callable[[str], object]
) -> list[str]:
    """Download variants one after the other, and continue after a failure.

    Args:
        names: of official variants, in any case.
        official: the weights cache.
        console: for messages; on a terminal it shows a bar for each file.
        say: called with one line for each variant: its name, file, and SHA-256.

    Returns:
        One message for each variant that failed.
    """
    faults = []
    for name in names:
        try:
            variant = find_official(name)
            with _bars(console) as bars:  # closed before `say`, because rich redirects standard output
                file = official.fetch(variant, _StepPrinter(name, bars))
            digest = official.digest(variant, file)
        except FetchError as error:
            faults.append(f"{name}: {error}")
        else:
            say(f"{name}: {file}" + (f", SHA-256 {digest}" if digest else ""))
    return faults


def find_official(name: str) -> Variant:
    """The official variant with a name.

    Raises:
        FetchError: if there is none; the message lists the names.
    """
    lower = name.lower()
    official = [each for each in VARIANTS if not VARIANTS[each].embedded]
    if lower in ALIASES:
        candidates = [each for each in ALIASES[lower]["cuda"] if each in official]
        raise FetchError(f"This is an alias. Name a variant: {', '.join(candidates)}.")
    if lower not in VARIANTS:
        raise FetchError(f"Unknown variant. Official variants: {', '.join(official)}.")
    return VARIANTS[lower]


def _bars(console: Console) -> progress.Progress:
    return progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


class _StepPrinter:
    """Shows the steps of one download: a bar that grows, and a line for each new text."""

    def __init__(self, name: str, bars: progress.Progress) -> None:
        self._name = name
        self._bars = bars
        self._text = ""

    def __call__(self, step: Step) -> None:
        """Show a step."""
        if step.text != self._text:
            self._text = step.text
            self._begin(step)
        for task in self._bars.task_ids:
            self._bars.update(task, completed=step.done, total=step.total)

    def _begin(self, step: Step) -> None:
        for task in self._bars.task_ids:
            self._bars.remove_task(task)
        if step.total is not None and not self._bars.disable:
            self._bars.add_task(f"{self._name}: {step.text}")
            return
        size = f", {megabytes(step.total)} MB" if step.total is not None else ""
        resumed = f", resumed after {megabytes(step.done)} MB" if step.done else ""
        self._bars.console.print(Text(f"{self._name}: {step.text}{size}{resumed}"), soft_wrap=True)
