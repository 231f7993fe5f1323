"""Asks a server at a URL with the clients of Triton and KServe; run in an environment that has them, by a test."""

import asyncio
import base64
import io
import sys

import kserve
import numpy as np
import tritonclient.http
from PIL import Image


def photo() -> bytes:
    """A PNG of 16x16."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 100, 50)).save(file, "PNG")
    return file.getvalue()


def size(image: bytes) -> tuple[int, int]:
    """Width and height of an encoded image."""
    return Image.open(io.BytesIO(image)).size


def ask_with_triton(url: str) -> None:
    """Health, metadata, and inference with binary data."""
    client = tritonclient.http.InferenceServerClient(url.removeprefix("http://"))
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("small-x2")
    assert client.is_model_ready("small-x2", "1")
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata()["name"] == "swin2sr-serve"
    assert client.get_model_metadata("small-x2")["inputs"][0]["datatype"] == "BYTES"
    given = tritonclient.http.InferInput("image", [1], "BYTES")
    given.set_data_from_numpy(np.array([photo()], dtype=np.object_), binary_data=True)
    result = client.infer("small-x2", [given])
    assert size(result.as_numpy("image")[0]) == (32, 32)
    wanted = tritonclient.http.InferRequestedOutput("image", binary_data=True)
    result = client.infer("small-x2", [given], outputs=[wanted], parameters={"format": "jpeg"}, request_id="mine")
    assert result.get_response()["id"] == "mine"
    assert result.as_numpy("image")[0].startswith(b"\xff\xd8")
    refused = ""
    try:
        client.infer("nobody", [given])
    except tritonclient.utils.InferenceServerException as error:
        refused = str(error)
    assert "nobody" in refused
    client.close()


async def ask_with_kserve(url: str) -> None:
    """Health, and inference with binary data in; this client reads no binary data that is not UTF-8, so base64 out."""
    client = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2", timeout=60))
    assert await client.is_server_live(url)
    assert await client.is_server_ready(url)
    assert await client.is_model_ready(url, "small-x2")
    given = kserve.InferInput("image", [1], "BYTES")
    given.set_data_from_numpy(np.array([photo()], dtype=np.object_), binary_data=True)
    request = kserve.InferRequest("small-x2", [given], request_id="mine")
    answer = await client.infer(url, request, model_name="small-x2")
    assert answer.id == "mine"
    assert size(base64.b64decode(answer.outputs[0].data[0])) == (32, 32)


if __name__ == "__main__":
    ask_with_triton(sys.argv[1])
    asyncio.run(ask_with_kserve(sys.argv[1]))
    print("tritonclient and kserve: all right")
