"""The three examples of the page that defines the Python surface, run as they stand but for the import.

They run in a process of their own, with a Hugging Face cache that holds networks of the right width and with stand-ins
for the two packages that fetch an image. Nothing reaches a network.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model import Swin2SRConfig, Swin2SRForImageSuperResolution, Swin2SRImageProcessor
from tests.test_official_hub import make_cache

STAND_INS = {
    "datasets.py": """
from PIL import Image
def load_dataset(name):
    return {"test": {"image": [Image.open("cats.png")]}}
""",
    "requests.py": """
class get:
    def __init__(self, url, stream):
        self.raw = open("butterfly.png", "rb")
""",
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with the stand-ins, two images, and a cache of networks under the ids of the page."""
    folder = tmp_path_factory.mktemp("seed")
    for name, text in STAND_INS.items():
        (folder / name).write_text(text)
    pixels = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "cats.png")
    Image.fromarray(pixels[:30, :44]).save(folder / "butterfly.png")
    snapshot = make_cache(folder / "hub", "caidas/swin2SR-classical-sr-x2-64")
    config = Swin2SRConfig(depths=(1,), num_heads=(6,))  # as wide as the page's network, and not as deep
    Swin2SRForImageSuperResolution(config).save_pretrained(snapshot)
    Swin2SRImageProcessor().save_pretrained(snapshot)
    return folder


def examples(page: str) -> list[str]:
    """The runnable code blocks of the page, prompts taken away."""
    blocks = re.findall(r"```py\n(.*?)```", page, re.DOTALL)
    return [
        "\n".join(line[4:] for line in block.splitlines() if line[:3] in (">>>", "..."))
        for block in blocks
        if ">>>" in block
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "question", "answer"),
    [
        (0, "(configuration.embed_dim, configuration.upscale, sum(p.numel() for p in model.parameters()))", "(180, 2,"),
        (1, "list(outputs.last_hidden_state.shape)", "[1, 180, 488, 648]"),
        (2, "(output.shape, str(output.dtype), bool(output.std() > 0))", "((64, 96, 3), 'uint8', True)"),
    ],
)
def test_an_example_runs_with_only_the_import_changed(shared, workplace, number, question, answer):
    """Each example of the page runs and ends with what the page says, or what follows from it."""
    (page,) = (path.read_text(encoding="utf-8") for path in (shared / "seed").iterdir())
    code = examples(page)[number]
    assert code.count("from transformers import") == 1
    code = code.replace("from transformers import", "from model import")
    root = Path(__file__).parents[1]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join((str(workplace), str(root))),
        "HF_HUB_CACHE": str(workplace / "hub"),
    }
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{code}\nprint({question})"],
        cwd=workplace,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert answer in finished.stdout
