"""Log lines for people or for machines. Writing them never blocks or ends the service."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener
from pathlib import Path
from types import TracebackType
from typing import Literal, NoReturn, TextIO

LogFormat = Literal["text", "json"]

STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", "color_message"}

WAITING_LINES = 10_000
"""Lines that wait for a slow reader of the log; more are dropped and counted."""

ANNOUNCEMENTS = "app.announcements"
"""Logger of the lines for the person who started the service. They go to standard output."""


class TextFormatter(logging.Formatter):
    """Time, level, message, and the fields that came with it as ``name=value``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and a traceback below it if there is one."""
        fields = " ".join(f"{name}={value}" for name, value in _fields(record).items())
        time = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%d %H:%M:%S")
        line = f"{time} {record.levelname:<8} {record.getMessage()} {fields}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Time (RFC 3339), level, logger, message, and the fields that came with it."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class BoundedQueueHandler(QueueHandler):
    """Hands formatted lines to the thread that writes them; drops and counts what does not fit.

    Args:
        lines: queue of the lines that wait.

    Attributes:
        dropped: lines that nobody will read.
    """

    def __init__(self, lines: queue.Queue[logging.LogRecord]) -> None:
        super().__init__(lines)
        self.dropped = 0
        self.writer: _Listener | None = None

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """The record with its finished line as its message."""
        return logging.makeLogRecord({"name": record.name, "levelno": record.levelno, "msg": self.format(record)})

    def enqueue(self, record: logging.LogRecord) -> None:
        """Put a line into the queue, or count it as dropped."""
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802 - logging's name
        """Count a line that could not be formatted or written, in place of a traceback on standard error."""
        self.dropped += 1


class _StreamWriter(logging.StreamHandler[TextIO]):
    """Writes lines to a stream; a line that cannot be written counts as dropped."""

    def __init__(self, stream: TextIO, source: BoundedQueueHandler, *, announcements: bool) -> None:
        super().__init__(stream)
        self._source = source
        self.addFilter(lambda record: (record.name == ANNOUNCEMENTS) == announcements)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        self._source.handleError(record)


class _Listener(QueueListener):
    """The thread that writes; it does not keep the process when its reader has stopped reading."""

    def finish(self, seconds: float) -> bool:
        """Write what waits, for so many seconds at most; whether everything was written."""
        thread = self._thread
        if thread is None:
            return True
        try:
            self.queue.put(self._sentinel, timeout=seconds)  # type: ignore[attr-defined]
        except queue.Full:
            return False
        thread.join(seconds)
        return not thread.is_alive()


def configure(log_format: LogFormat, level: str = "INFO") -> None:
    """Send everything that is logged in this process to standard error, and announcements to standard output.

    A thread writes, so that a log that nobody reads holds up nobody. Python's warnings and uncaught exceptions are
    logged too: in JSON every line of both streams is an object.
    """
    finish()
    lines: queue.Queue[logging.LogRecord] = queue.Queue(WAITING_LINES)
    handler = BoundedQueueHandler(lines)
    handler.setFormatter(_formatter(log_format))
    announcements = BoundedQueueHandler(lines)
    announcements.setFormatter(_formatter(log_format) if log_format == "json" else logging.Formatter("%(message)s"))
    streams = [(_stream(sys.stderr), handler, False), (_stream(sys.stdout), announcements, True)]
    listener = _Listener(
        lines, *(_StreamWriter(stream, source, announcements=mine) for stream, source, mine in streams)
    )
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(level)
    announcer = logging.getLogger(ANNOUNCEMENTS)
    announcer.handlers[:] = [announcements]
    announcer.propagate = False
    announcer.setLevel("INFO")
    logging.getLogger("httpx").setLevel("WARNING")
    logging.getLogger("uvicorn").setLevel("ERROR")  # what it warns about, the protocol logs itself
    logging.captureWarnings(capture=True)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda args: _log_uncaught(args.exc_type, args.exc_value, args.exc_traceback)
    sys.unraisablehook = lambda args: _log_uncaught(args.exc_type, args.exc_value, args.exc_traceback)
    handler.writer = listener
    listener.start()


def announce(line: str) -> None:
    """Show a line to the person who started the service."""
    logging.getLogger(ANNOUNCEMENTS).info("%s", line)


def dropped() -> int:
    """Log lines of this process that nobody will read, because the log was full or closed."""
    handlers = [*logging.root.handlers, *logging.getLogger(ANNOUNCEMENTS).handlers]
    return sum(each.dropped for each in handlers if isinstance(each, BoundedQueueHandler))


def finish(seconds: float = 1.0) -> bool:
    """Write the lines that wait, for so many seconds at most.

    Returns:
        Whether all of them were written. If not, the writing thread still holds the streams: do not flush them.
    """
    writers = [each.writer for each in logging.root.handlers if isinstance(each, BoundedQueueHandler)]
    return all(each.finish(seconds) for each in writers if each)


def leave(status: int) -> NoReturn:
    """End the process now, with what the log can still take.

    A thread that still loads weights or encodes for nobody must not keep the process, nor a log that nobody reads.
    """
    if finish():
        for stream in filter(None, (sys.stdout, sys.stderr)):  # None where they are closed
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
    os._exit(status)


def chosen_format(option: object, environment: Mapping[str, str]) -> LogFormat:
    """The log format that was asked for, before the settings are checked."""
    value = option or next((text for name, text in environment.items() if name.upper() == "SWIN2SR_LOG_FORMAT"), "")
    return "json" if str(value).lower() == "json" else "text"


def report(line: str, log_format: LogFormat, level: int = logging.ERROR) -> None:
    """Write a line to standard error before the log is configured, in its format."""
    if log_format == "json":
        line = JsonFormatter().format(logging.LogRecord("app", level, "", 0, "%s", (line,), None))
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):  # closed, or nobody reads it
        return


def _formatter(log_format: LogFormat) -> logging.Formatter:
    return JsonFormatter() if log_format == "json" else TextFormatter()


def _stream(stream: TextIO | None) -> TextIO:
    """A standard stream, or where a closed one's lines go."""
    return stream or Path(os.devnull).open("w")


def _log_uncaught(kind: type[BaseException], error: BaseException | None, traceback: TracebackType | None) -> None:
    if issubclass(kind, SystemExit):
        return
    logging.getLogger("app").critical("uncaught exception", exc_info=(kind, error or kind(), traceback))


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in record.__dict__.items() if name not in STANDARD}
