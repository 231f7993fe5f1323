"""`swin2sr fetch`: official weights brought into the cache, with a bar on a terminal and lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.text import Text

from model.official.fetch import FetchError, OfficialWeights, Step, megabytes
from model.variants import ALIASES, VARIANTS, Variant


def fetch_all(
    names: Sequence[str], official: OfficialWeights, console: Console, say: Callable[[str], object]
) -> list[str]:
    """Fetch variants one after the other, whatever becomes of each.

    Args:
        names: of the table.
        official: where they lie, and how they get there.
        console: for people; on a terminal it has a bar for each file.
        say: told one line for each variant that is here now: its name, file, and SHA-256.

    Returns:
        A sentence for each that could not be fetched.
    """
    faults = []
    for name in names:
        try:
            variant = find_official(name)
            with _bars(console) as bars:  # over before anything is said: they take standard output for themselves
                file = official.fetch(variant, _Shown(name, bars))
            digest = official.digest(variant, file)
        except FetchError as error:
            faults.append(f"{name}: {error}")
        else:
            say(f"{name}: {file}" + (f", SHA-256 {digest}" if digest else ""))
    return faults


def _bars(console: Console) -> Progress:
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    description = TextColumn("{task.description}", markup=False)
    return Progress(description, *columns, console=console, transient=True, disable=not console.is_terminal)


def find_official(name: str) -> Variant:
    """The official variant of a name.

    Raises:
        FetchError: if there is none; the text says which names there are.
    """
    wish = name.lower()
    official = [each for each in VARIANTS if not VARIANTS[each].embedded]
    if wish in ALIASES:
        candidates = [each for each in ALIASES[wish]["cuda"] if each in official]
        raise FetchError(f"this is an alias; name a variant: {', '.join(candidates)}.")
    if wish not in VARIANTS:
        raise FetchError(f"there is no such variant. Official ones are {', '.join(official)}.")
    return VARIANTS[wish]


class _Shown:
    """Shows each step of one variant: a bar that grows, and a line for whatever is new."""

    def __init__(self, name: str, bars: Progress) -> None:
        self._name = name
        self._bars = bars
        self._text = ""

    def __call__(self, step: Step) -> None:
        """Show how far it is."""
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
        here = f", {megabytes(step.done)} MB of it from before" if step.done else ""
        self._bars.console.print(Text(f"{self._name}: {step.text}{size}{here}"), soft_wrap=True)
