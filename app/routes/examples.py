"""Examples in the OpenAPI document: bodies of errors, progress streams, and metrics."""

from __future__ import annotations

from collections.abc import Sequence

from app import errors

REQUEST_ID = "9f2c1e0b7a6d4c3f8e5d2b1a09c8d7e6"

PROGRESS = """\
--BOUNDARY
content-type: application/json
content-length: 50

{"state":"queued","position":3,"tile":0,"tiles":6}
--BOUNDARY
content-type: application/json
content-length: 38

{"state":"running","tile":2,"tiles":6}
--BOUNDARY
content-disposition: inline; filename="photo-small-x2.png"; filename*=UTF-8''photo-small-x2.png
x-swin2sr-variant: small-x2
x-swin2sr-scale: 2
x-swin2sr-tiles: 6
server-timing: decode;dur=6.1, queue;dur=0.2, forward;dur=412.0, encode;dur=20.3
content-length: 81672
content-type: image/png

(the image)
--BOUNDARY--
"""
"""A response with progress."""

EXPOSITION = """\
# HELP swin2sr_requests_total Requests for an image by outcome.
# TYPE swin2sr_requests_total counter
swin2sr_requests_total{key="",outcome="ok",variant="small-x2"} 12.0
"""
"""The first lines of the metrics."""


EXAMPLE_ERRORS = (
    errors.InvalidImage("The PNG is truncated; send the whole file."),
    errors.InvalidUpload("The multipart body has a file 'image'. Send the image as 'file'."),
    errors.BadRequest("This is not well-formed HTTP/1.1: illegal request line."),
    errors.Unauthorized("An API key is required. Send a key as `Authorization: Bearer KEY`."),
    errors.Forbidden("An API key does not permit this. Use the admin token."),
    errors.NotFound("No such endpoint: /v1/enlarge. See GET /docs."),
    errors.UnknownVariant(
        "Unknown variant 'x9'. Available: x2, x4, jpeg-restore, compressed, lightweight-x2, small-x2.",
        available=["x2", "x4", "jpeg-restore", "compressed", "lightweight-x2", "small-x2"],
    ),
    errors.MethodNotAllowed("GET is not allowed on /v1/upscale; allowed: POST.", allowed="POST"),
    errors.UploadTooSlow(
        "The body was not complete after 30 s (UPLOAD_TIMEOUT_MS). Send a smaller file, or use a faster connection.",
        limit=30.0,
    ),
    errors.BodyTooLarge(
        "The body is larger than 67108864 bytes (MAX_BODY_BYTES). Send a smaller file.",
        limit=67_108_864,
        actual=80_000_000,
    ),
    errors.ImageTooLarge(
        "The image has 10000x10000 pixels; at most 50000000 are accepted.", limit=50_000_000, actual=100_000_000
    ),
    errors.OutputTooLarge(
        "webp holds 16383 pixels a side, the result has 18000x12000; choose another format.",
        limit=16_383,
        actual=18_000,
    ),
    errors.UnsupportedFormat(
        "This is not an image of a known format; send one of png, jpeg, webp, tiff, avif, bmp, gif, heif, jxl.",
        supported=["png", "jpeg", "webp", "tiff", "avif", "bmp", "gif", "heif", "jxl"],
    ),
    errors.MisdirectedRequest(
        "The host 'images.example' is not accepted. If the name is right, add it to SWIN2SR_ALLOWED_HOSTS."
    ),
    errors.InvalidOption(
        "quality: '0' is not an integer from 1 to 100",
        errors=["quality: '0' is not an integer from 1 to 100"],
    ),
    errors.QueueFull(
        "The queue is full: 256 requests. Try again after the time in Retry-After.",
        retry_after=3,
        reason="requests",
        limit=256,
        actual=256,
    ),
    errors.HeadersTooLarge("The request line and headers exceed 65536 bytes. Send shorter headers.", limit=65_536),
    errors.InternalError("Unexpected server error. Look for the request id of this response in the server's log."),
    errors.NotReady(
        "The weights of 'realworld-x4' are not on this server. Run `swin2sr fetch realworld-x4` on the server "
        "and restart it, or ask its administrator to POST /v1/variants/realworld-x4/load.",
        retry_after=60,
        variant="realworld-x4",
    ),
    errors.Draining("This server is shutting down. Send the request again."),
    errors.OutOfMemory("There is not enough memory now. Send the request later, or with a smaller `tile`."),
    errors.DeadlineExceeded("The deadline passed before the image was upscaled."),
)
"""One error of every class, with messages and facts as the service sends them."""


def problems(*kinds: type[errors.ServiceError]) -> dict[int | str, dict[str, object]]:
    """The documentation of a route's errors: a response for each status, an example for each code.

    The ``default`` is an unexpected server error.
    """
    shown = [error for error in EXAMPLE_ERRORS if type(error) in kinds]
    statuses = sorted({error.status for error in shown})
    responses: dict[int | str, dict[str, object]] = {
        status: _response([error for error in shown if error.status == status]) for status in statuses
    }
    bugs = [error for error in EXAMPLE_ERRORS if isinstance(error, errors.InternalError)]
    return {**responses, "default": _response(bugs)}


def _response(shown: Sequence[errors.ServiceError]) -> dict[str, object]:
    examples = {error.code: {"summary": error.title, "value": error.problem(REQUEST_ID)} for error in shown}
    content = {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": examples}
    response: dict[str, object] = {
        "description": "; ".join(error.title for error in shown) + ".",
        "content": {"application/problem+json": content},
    }
    if any(error.retry_after is not None for error in shown):
        about = {"description": "Seconds to wait before another attempt.", "schema": {"type": "integer"}}
        response["headers"] = {"Retry-After": about}
    return response
