"""Reads and writes bodies of the Open Inference Protocol: JSON and binary data with an encoded image.

An element of the datatype ``BYTES`` in binary form is its length (4 bytes, little-endian) and its bytes.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.errors import InvalidOption, InvalidUpload
from app.schemas import UpscaleOptions, option_faults

TENSOR = "image"
"""The name of the only input and of the only output."""

MAX_PROBLEMS = 5
"""Maximum number of faults of one request that are described."""

_LENGTH = struct.Struct("<I")


class Tensor(BaseModel):
    """An input, or a requested output."""

    name: str
    parameters: dict[str, Any] = Field(default_factory=dict)


class Input(Tensor):
    """An input with its data, which follows in binary form if ``parameters`` has ``binary_data_size``."""

    model_config = ConfigDict(extra="forbid")

    shape: list[int]
    datatype: Literal["BYTES"]
    data: list[Any] | None = None


class InferRequest(BaseModel):
    """The JSON of a request. Unknown members are ignored."""

    id: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    inputs: list[Input] = Field(min_length=1, max_length=1)
    outputs: list[Tensor] = Field(default_factory=list, max_length=1)


@dataclass(frozen=True)
class Call:
    """A request: one encoded image and the options.

    Attributes:
        id: the client's id of the request, which the response repeats.
        binary: whether the response contains the image as binary data.
    """

    image: bytes
    options: UpscaleOptions
    id: str | None
    binary: bool


@dataclass(frozen=True)
class Answer:
    """The encoded result, and the model that computed it."""

    model: str
    version: str
    image: bytes
    media_type: str


def parse_call(body: bytes, header_length: int | None, model: str) -> Call:
    """Read a request.

    Args:
        body: JSON, or JSON and binary data.
        header_length: bytes of JSON; None if the body is JSON only.
        model: name in the URL, used as the variant.

    Raises:
        InvalidUpload: if the body is not a request with one image.
        InvalidOption: if ``parameters`` contains an unknown option or an invalid value.
    """
    if header_length is not None and header_length > len(body):
        raise InvalidUpload(
            f"Inference-Header-Content-Length is {header_length}, and the body has {len(body)} bytes only."
        )
    try:
        request = InferRequest.model_validate_json(body[:header_length])
    except ValidationError as error:
        raise InvalidUpload(f"The body is not a request of the Open Inference Protocol: {_faults(error)}.") from None
    [given] = request.inputs
    if given.name != TENSOR or given.shape != [1]:
        shape = str(given.shape)[:100]
        raise InvalidUpload(f"The input is {given.name[:100]!r} of shape {shape}. Send {TENSOR!r} of shape [1].")
    if [output.name for output in request.outputs] not in ([], [TENSOR]):
        raise InvalidUpload(f"Unknown output {request.outputs[0].name[:100]!r}. Request {TENSOR!r}, or omit outputs.")
    rest = b"" if header_length is None else body[header_length:]
    parameters = dict(request.parameters)
    binary = bool(parameters.pop("binary_data_output", False))
    if request.outputs:
        binary = bool(request.outputs[0].parameters.get("binary_data", binary))
    return Call(_image(given, rest), _options(parameters, model), request.id, binary)


def encode_answer(call: Call, answer: Answer) -> tuple[bytes, int | None]:
    """The body of a response, and the length of its JSON if binary data follows it."""
    output: dict[str, Any] = {"name": TENSOR, "datatype": "BYTES", "shape": [1]}
    kind = {"content_type": answer.media_type} if call.binary else {"content_type": "base64"}
    element = b""
    if call.binary:
        element = _LENGTH.pack(len(answer.image)) + answer.image
        output["parameters"] = {**kind, "binary_data_size": len(element)}
    else:
        output["parameters"] = {**kind, "media_type": answer.media_type}
        output["data"] = [base64.b64encode(answer.image).decode("ascii")]
    document = {"model_name": answer.model, "model_version": answer.version, "outputs": [output]}
    if call.id is not None:
        document["id"] = call.id
    text = json.dumps(document).encode()
    return text + element, len(text) if call.binary else None


def _faults(error: ValidationError) -> str:
    """Describe the faults, without the values, which may be large."""
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    named = [
        f"{'.'.join(map(str, each['loc']))[:100] or 'body'}: {each['msg'][:200]}" for each in faults[:MAX_PROBLEMS]
    ]
    return "; ".join(named)


def _image(given: Input, rest: bytes) -> bytes:
    """The bytes of the one element.

    Raises:
        InvalidUpload: if there is not exactly one.
    """
    size = given.parameters.get("binary_data_size")
    if size is None:
        if rest:
            raise InvalidUpload(
                f"{len(rest)} bytes follow the JSON. Give the input the parameter binary_data_size, or send JSON only."
            )
        return _from_base64(given)
    if size != len(rest) or given.data is not None:
        raise InvalidUpload(
            f"binary_data_size is {str(size)[:20]} and {len(rest)} bytes follow the JSON. They must be equal, and the "
            "input must have no data; the header Inference-Header-Content-Length states the length of the JSON."
        )
    length = _LENGTH.unpack_from(rest)[0] if len(rest) >= _LENGTH.size else -1
    if length != len(rest) - _LENGTH.size:
        raise InvalidUpload("The binary data is not one element: its length in 4 bytes, little-endian, and its bytes.")
    return _not_empty(rest[_LENGTH.size :])


def _from_base64(given: Input) -> bytes:
    if given.data is None or len(given.data) != 1 or not isinstance(given.data[0], str):
        raise InvalidUpload("The input has no data. Send one string of base64, or binary data.")
    if given.parameters.get("content_type") != "base64":
        raise InvalidUpload(
            'An image in JSON must be base64, and the input\'s parameters must hold {"content_type": "base64"}.'
        )
    try:
        return _not_empty(base64.b64decode(given.data[0], validate=True))
    except (binascii.Error, ValueError):
        raise InvalidUpload("The input's data is not base64.") from None


def _not_empty(image: bytes) -> bytes:
    if not image:
        raise InvalidUpload("The image is empty. Send the bytes of one image.")
    return image


def _options(parameters: dict[str, Any], model: str) -> UpscaleOptions:
    """The options in a request's parameters. Some clients send ``timeout`` in microseconds.

    Raises:
        InvalidOption: if a parameter is not an option, or has an invalid value.
    """
    if "variant" in parameters:
        raise InvalidOption("variant: the URL names the model. Remove it from the parameters.")
    timeout = parameters.pop("timeout", None)
    if timeout is not None:
        if type(timeout) is not int or timeout < 1:
            raise InvalidOption("timeout: must be a whole number of microseconds, at least 1.")
        parameters.setdefault("timeout_ms", -(-timeout // 1000))
    try:
        return UpscaleOptions.model_validate({**parameters, "variant": model})
    except ValidationError as error:
        raise InvalidOption("; ".join(option_faults(error.errors()))) from None
