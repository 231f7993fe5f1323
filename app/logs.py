"""The log, as text or as JSON. Logging never blocks the service and never raises."""

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
"""Lines that wait while the log is read slowly. Further lines are dropped and counted."""

ANNOUNCEMENTS = "app.announcements"
"""Logger of the lines for the user who started the service. They go to standard output."""


class TextFormatter(logging.Formatter):
    """Time, level, message, and the fields of the record as ``name=value``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, followed by the traceback if there is one."""
        fields = " ".join(f"{name}={value}" for name, value in _fields(record).items())
        time = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%d %H:%M:%S")
        line = f"{time} {record.levelname:<8} {record.getMessage()} {fields}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Time (RFC 3339), level, logger, message, and the fields of the record."""
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
    """Puts formatted lines into the queue of the writing thread; drops and counts what does not fit.

    Args:
        lines: the queue.

    Attributes:
        dropped: number of dropped lines.
    """

    def __init__(self, lines: queue.Queue[logging.LogRecord]) -> None:
        super().__init__(lines)
        self.dropped = 0
        self.writer: _Listener | None = None

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """A record whose message is the formatted line."""
        return logging.makeLogRecord({"name": record.name, "levelno": record.levelno, "msg": self.format(record)})

    def enqueue(self, record: logging.LogRecord) -> None:
        """Put a line into the queue, or count it as dropped."""
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802 - logging's name
        """Count a line that could not be formatted or written, instead of printing a traceback."""
        self.dropped += 1


class _StreamWriter(logging.StreamHandler[TextIO]):
    """Writes lines to a stream. A line that cannot be written counts as dropped."""

    def __init__(self, stream: TextIO, source: BoundedQueueHandler, *, announcements: bool) -> None:
        super().__init__(stream)
        self._source = source
        self.addFilter(lambda record: (record.name == ANNOUNCEMENTS) == announcements)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        self._source.handleError(record)


class _Listener(QueueListener):
    """The thread that writes. It does not keep the process alive if the log is not read."""

    def finish(self, seconds: float) -> bool:
        """Write the remaining lines for at most ``seconds``, and return whether all were written."""
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
    """Write the log to standard error and announcements to standard output.

    A thread writes, so that a log that is not read does not block the service. Python's warnings and uncaught
    exceptions are logged too, so with JSON every line of both streams is an object.
    """
    finish()
    lines: queue.Queue[logging.LogRecord] = queue.Queue(WAITING_LINES)
    handler = BoundedQueueHandler(lines)
    handler.setFormatter(_formatter(log_format))
    announcements = BoundedQueueHandler(lines)
    announcements.setFormatter(_formatter(log_format) if log_format == "json" else logging.Formatter("%(message)s"))
    streams = [(_stream(sys.stderr), handler, False), (_stream(sys.stdout), announcements, True)]
    listener = _Listener(
        lines,
        *(_StreamWriter(stream, source, announcements=announces) for stream, source, announces in streams),
    )
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(level)
    announcer = logging.getLogger(ANNOUNCEMENTS)
    announcer.handlers[:] = [announcements]
    announcer.propagate = False
    announcer.setLevel("INFO")
    logging.getLogger("httpx").setLevel("WARNING")
    logging.getLogger("uvicorn").setLevel("ERROR")  # app.http.protocol logs what uvicorn warns about
    logging.captureWarnings(capture=True)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda args: _log_uncaught(args.exc_type, args.exc_value, args.exc_traceback)
    sys.unraisablehook = lambda args: _log_uncaught(args.exc_type, args.exc_value, args.exc_traceback)
    handler.writer = listener
    listener.start()


def announce(line: str) -> None:
    """Print a line for the user who started the service."""
    logging.getLogger(ANNOUNCEMENTS).info("%s", line)


def dropped() -> int:
    """Number of log lines of this process that were dropped, because the log was full or closed."""
    handlers = [*logging.root.handlers, *logging.getLogger(ANNOUNCEMENTS).handlers]
    return sum(each.dropped for each in handlers if isinstance(each, BoundedQueueHandler))


def finish(seconds: float = 1.0) -> bool:
    """Write the remaining lines for at most ``seconds``.

    Returns:
        Whether all were written. If not, the writing thread still holds the locks of the streams: do not flush them.
    """
    writers = [each.writer for each in logging.root.handlers if isinstance(each, BoundedQueueHandler)]
    return all(each.finish(seconds) for each in writers if each)


def leave(status: int) -> NoReturn:
    """End the process now, after writing the remaining log lines.

    ``os._exit``, because threads that still load weights or encode, or write the log, must not keep the process alive.
    """
    if finish():
        for stream in filter(None, (sys.stdout, sys.stderr)):  # None if it is closed
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
    os._exit(status)


def chosen_format(option: object, environment: Mapping[str, str]) -> LogFormat:
    """The log format of an option or of the environment, before the settings are validated."""
    value = option or next((text for name, text in environment.items() if name.upper() == "SWIN2SR_LOG_FORMAT"), "")
    return "json" if str(value).lower() == "json" else "text"


def report(line: str, log_format: LogFormat) -> None:
    """Write a line to standard error before the log is configured, in its format."""
    if log_format == "json":
        line = JsonFormatter().format(logging.LogRecord("app", logging.ERROR, "", 0, "%s", (line,), None))
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):  # the stream is closed or not read
        return


def _formatter(log_format: LogFormat) -> logging.Formatter:
    return JsonFormatter() if log_format == "json" else TextFormatter()


def _stream(stream: TextIO | None) -> TextIO:
    """A standard stream, or the null device if it is closed."""
    return stream or Path(os.devnull).open("w")


def _log_uncaught(kind: type[BaseException], error: BaseException | None, traceback: TracebackType | None) -> None:
    if issubclass(kind, SystemExit):
        return
    logging.getLogger("app").critical("uncaught exception", exc_info=(kind, error or kind(), traceback))


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in record.__dict__.items() if name not in STANDARD}
