"""The seed's image processor: what it takes, what it gives, what it refuses, and the way back."""

import json
import types

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from model import Swin2SRImageProcessor

sides = st.integers(1, 30)


def photo(height: int = 10, width: int = 13, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def test_sides_always_grow_to_the_next_larger_multiple():
    """480x640 becomes 488x648 and 256 becomes 264, as Transformers pads."""
    processor = Swin2SRImageProcessor()
    assert processor(np.zeros((480, 640, 3), np.uint8), return_tensors="pt").pixel_values.shape == (1, 3, 488, 648)
    assert processor(np.zeros((256, 256, 3), np.uint8), return_tensors="np")["pixel_values"].shape == (1, 3, 264, 264)


def test_every_kind_of_image_gives_the_same_pixel_values():
    """PIL, arrays and tensors in both formats, lists, nested lists and batches are one and the same image."""
    pixels = photo()
    expected = np.pad(pixels, [(0, 6), (0, 3), (0, 0)], mode="symmetric").transpose(2, 0, 1) / 255
    planes = pixels.transpose(2, 0, 1)
    kinds = (
        Image.fromarray(pixels),
        pixels,
        planes,
        torch.from_numpy(pixels),
        torch.from_numpy(planes.copy()).requires_grad_(False),
        [pixels],
        [[Image.fromarray(pixels)]],
        (planes,),
        pixels[None],
        torch.from_numpy(planes.copy())[None],
    )
    for image in kinds:
        inputs = Swin2SRImageProcessor()(image, return_tensors="np")
        assert inputs.pixel_values.dtype == np.float32
        np.testing.assert_allclose(inputs.pixel_values, expected[None], atol=1e-7)
        assert inputs.original_sizes == ((10, 13),)


def test_inputs_are_a_dictionary_for_the_network():
    """Only pixel_values is a key, so that inputs can be passed on with two asterisks."""
    inputs = Swin2SRImageProcessor()(photo(), return_tensors="pt")
    assert list(inputs) == ["pixel_values"]
    assert dict(**inputs)["pixel_values"] is inputs.pixel_values
    assert inputs.to(torch.float64).pixel_values.dtype == torch.float64
    assert inputs.to("cpu") is inputs


def test_data_formats():
    """The output is channels first, last, or as the input was; a plane (H, W) stays one if requested."""
    processor, pixels = Swin2SRImageProcessor(do_pad=False), photo()
    assert processor(pixels)["pixel_values"][0].shape == (3, 10, 13)
    assert processor(pixels, data_format="channels_last")["pixel_values"][0].shape == (10, 13, 3)
    assert processor(pixels, data_format=None)["pixel_values"][0].shape == (10, 13, 3)
    assert processor(pixels.transpose(2, 0, 1), data_format=None)["pixel_values"][0].shape == (3, 10, 13)
    plane = pixels[..., 0]
    for found in ("none", None):
        assert processor(plane, input_data_format=found)["pixel_values"][0].shape == (1, 10, 13)
        assert processor(plane, input_data_format=found, data_format=None)["pixel_values"][0].shape == (10, 13)


def test_an_ambiguous_shape_needs_a_format():
    """A 3x20x3 image is taken as channels first, as Transformers does, unless its format is given."""
    image = photo(3, 20)
    processor = Swin2SRImageProcessor(do_pad=False)
    assert processor(image)["pixel_values"][0].shape == (3, 20, 3)
    assert processor(image, input_data_format="channels_last")["pixel_values"][0].shape == (3, 3, 20)


@pytest.mark.parametrize("height", [1, 3])
def test_the_format_of_a_pil_image_is_never_in_doubt(height):
    """A PIL image one or three pixels high is not taken for channels first."""
    inputs = Swin2SRImageProcessor(do_pad=False)(Image.fromarray(photo(height, 9)))
    assert inputs["pixel_values"][0].shape == (3, height, 9)


def test_options_of_a_call_replace_those_of_the_processor():
    """do_rescale, rescale_factor, do_pad and pad_size can be given to a call, and the processor keeps its own."""
    processor, pixels = Swin2SRImageProcessor(), photo()
    raw = processor.preprocess(pixels, do_rescale=False, do_pad=False)["pixel_values"][0]
    assert raw.dtype == np.uint8
    assert np.array_equal(raw, pixels.transpose(2, 0, 1))
    halves = processor.preprocess(pixels, rescale_factor=0.5, pad_size=7)["pixel_values"][0]
    assert halves.shape == (3, 14, 14)
    assert np.array_equal(halves[:, :10, :13], pixels.transpose(2, 0, 1) / np.float32(2))
    assert (processor.do_rescale, processor.rescale_factor, processor.do_pad, processor.pad_size) == (
        True,
        1 / 255,
        True,
        8,
    )


@pytest.mark.slow
@given(st.lists(st.tuples(sides, sides), min_size=1, max_size=4), st.integers(1, 4), st.integers(2, 9))
def test_post_processing_undoes_the_padding(sizes, scale, pad_size):
    """Reconstructions are cropped to what each image itself became, whatever its size."""
    processor = Swin2SRImageProcessor(pad_size=pad_size)
    for height, width in sizes:
        inputs = processor(Image.fromarray(photo(height, width)), return_tensors="pt")
        enlarged = inputs.pixel_values.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
        outputs = types.SimpleNamespace(reconstruction=enlarged)
        for given_outputs in (outputs, enlarged):
            (image,) = processor.post_process_super_resolution(given_outputs, inputs.original_sizes)
            assert image.shape == (3, scale * height, scale * width)
            expected = photo(height, width).repeat(scale, 0).repeat(scale, 1).transpose(2, 0, 1) / np.float32(255)
            np.testing.assert_allclose(image.numpy(), expected, atol=1e-7)


def test_one_padded_batch_can_hold_images_of_different_sizes():
    """Images that are padded to one size are stacked, and each is cropped to its own size."""
    processor = Swin2SRImageProcessor()
    inputs = processor([photo(10, 13), photo(15, 9)], return_tensors="pt")
    assert inputs.pixel_values.shape == (2, 3, 16, 16)
    images = processor.post_process_super_resolution(inputs.pixel_values, inputs.original_sizes)
    assert [tuple(image.shape) for image in images] == [(3, 10, 13), (3, 15, 9)]


def test_sizes_that_do_not_belong_together_are_refused():
    """A wrong number of sizes, or a size that another padded image has, is an error."""
    processor = Swin2SRImageProcessor()
    with pytest.raises(ValueError, match="2 sizes"):
        processor.post_process_super_resolution(torch.zeros(1, 3, 32, 32), [(10, 10), (10, 10)])
    with pytest.raises(ValueError, match="padded to"):
        processor.post_process_super_resolution(torch.zeros(1, 3, 32, 48), [(10, 10)])
    with pytest.raises(ValueError, match="padded to"):
        processor.post_process_super_resolution(torch.zeros(1, 3, 8, 8), [(10, 10)])


def test_without_padding_there_is_nothing_to_undo():
    """With do_pad=False in both calls the reconstruction is not cropped."""
    processor = Swin2SRImageProcessor()
    (image,) = processor.post_process_super_resolution(torch.zeros(1, 3, 20, 26), [(10, 13)], do_pad=False)
    assert image.shape == (3, 20, 26)


def foreign(module: str, name: str) -> object:
    return type(name, (), {"__module__": module})()


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (foreign("tensorflow.python.framework.ops", "EagerTensor"), "EagerTensor is not supported"),
        (foreign("jaxlib.xla_extension", "ArrayImpl"), "ArrayImpl is not supported"),
        ("photo.png", "photo.png is not an image file that can be read"),
        ("https://example.org/photo.png", "is not downloaded"),
        (b"photo", "bytes is not an image"),
        (None, "NoneType is not an image"),
        ([], "the list of images is empty"),
        (np.zeros(5), "two or three dimensions"),
        (np.zeros((1, 1, 1, 1, 1)), "two or three dimensions"),
        (np.zeros((10, 10, 4)), "pass input_data_format"),
        (np.zeros((0, 10, 3)), "at least one pixel"),
        (Image.new("RGBA", (4, 4)), r"mode RGBA is neither RGB nor L: use image.convert\('RGB'\)"),
        (Image.new("P", (4, 4)), "mode P"),
        ([photo(), photo(20, 20)], "one by one"),
    ],
)
def test_what_is_no_image_is_refused_with_a_sentence(image, words):
    """Tensors of TensorFlow and JAX, other types, other shapes and mixed sizes are refused, saying what to give."""
    with pytest.raises(ValueError, match=words):
        Swin2SRImageProcessor()(image, return_tensors="pt")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"return_tensors": "tf"}, "'tf' is not supported"),
        ({"return_tensors": "jax"}, "'jax' is not supported"),
        ({"return_tensors": "xx"}, "return_tensors must be one of"),
        ({"data_format": "none"}, "data_format must be one of"),
        ({"input_data_format": "first"}, "input_data_format must be one of"),
        ({"input_data_format": "none"}, "not in the format 'none'"),
        ({"pad_size": 0}, "pad_size"),
        ({"pad_size": 2.5}, "pad_size"),
    ],
)
def test_impossible_options_are_refused(options, words):
    """Unknown frameworks, formats and pad sizes are refused by name."""
    with pytest.raises(ValueError, match=words):
        Swin2SRImageProcessor()(photo(), **options)


def test_a_folder_round_trips(tmp_path):
    """save_pretrained and from_pretrained keep every setting, and a call may replace some."""
    Swin2SRImageProcessor(do_rescale=False, rescale_factor=0.5, do_pad=False, pad_size=7).save_pretrained(
        tmp_path / "p"
    )
    loaded = Swin2SRImageProcessor.from_pretrained(tmp_path / "p")
    assert (loaded.do_rescale, loaded.rescale_factor, loaded.do_pad, loaded.pad_size) == (False, 0.5, False, 7)
    assert Swin2SRImageProcessor.from_pretrained(tmp_path / "p", do_pad=True).do_pad is True


def test_files_of_transformers_five_are_read(tmp_path):
    """Transformers 5 calls the pad size size_divisor; unknown fields are passed over."""
    values = {"size_divisor": 7, "image_processor_type": "Swin2SRImageProcessorFast", "do_resize": None}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    assert Swin2SRImageProcessor.from_pretrained(tmp_path).pad_size == 7


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_an_unreadable_configuration_names_its_file(tmp_path, text):
    """An absent, broken or odd preprocessor_config.json is an error that names it."""
    if text is not None:
        (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"preprocessor_config\.json"):
        Swin2SRImageProcessor.from_pretrained(tmp_path)
