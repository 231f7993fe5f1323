"""The settings of the image processor, and reading and writing them as ``preprocessor_config.json``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from model.pretrained_config import refuse_push, warn_unknown
from model.repository import FOLDER_OPTIONS, find_folder

CONFIG_NAME = "preprocessor_config.json"
IGNORED = {"image_processor_type", "processor_class", "_processor_class", "feature_extractor_type"}
_FIELDS = ("do_rescale", "rescale_factor", "do_pad", "pad_size", "size_divisor")


class ProcessorSettings:
    """The settings, as arguments of the constructor and as a file."""

    def __init__(
        self,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_pad: bool = True,
        pad_size: int = 8,
        **options: Any,  # noqa: ANN401
    ) -> None:
        self.do_rescale = do_rescale
        self.rescale_factor = rescale_factor
        self.do_pad = do_pad
        self._size_name = "size_divisor" if options.get("size_divisor") is not None else "pad_size"
        self.pad_size = check_pad_size(take_pad_size(options, pad_size))
        warn_unknown(type(self).__name__, options.keys() - IGNORED)

    @property
    def size_divisor(self) -> int:
        """The name of ``pad_size`` in Transformers 5."""
        return self.pad_size

    @size_divisor.setter
    def size_divisor(self, size: int) -> None:
        self.pad_size = check_pad_size(size)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        return_unused_kwargs: bool = False,
        **options: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401 (with return_unused_kwargs a pair)
        """Read ``preprocessor_config.json`` from a folder, or of a hub id.

        Args:
            pretrained_model_name_or_path: a folder, the file, or a hub id.
            return_unused_kwargs: whether to return the options that are no constructor arguments too.
            options: those of ``find_folder``, and constructor arguments that replace those of the file.

        Raises:
            ValueError: if there is no such file, or it is not readable.
        """
        values, overrides = cls.get_image_processor_dict(pretrained_model_name_or_path, **options)
        unused = {name: value for name, value in overrides.items() if name not in _FIELDS}
        if not return_unused_kwargs:
            return cls.from_dict(values, **overrides)
        known = {name: value for name, value in overrides.items() if name in _FIELDS}
        return cls.from_dict(values, **known), unused

    @classmethod
    def get_image_processor_dict(
        cls,
        pretrained_model_name_or_path: str | Path,
        **options: Any,  # noqa: ANN401
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The content of ``preprocessor_config.json``, and the options that are not those of ``find_folder``.

        Raises:
            ValueError: as ``from_pretrained``.
        """
        folder = {name: options.pop(name) for name in FOLDER_OPTIONS if name in options}
        file = find_folder(pretrained_model_name_or_path, **folder)
        return _read(file / CONFIG_NAME if file.is_dir() else file), options

    @classmethod
    def from_dict(cls, image_processor_dict: Mapping[str, Any], **overrides: Any) -> Self:  # noqa: ANN401
        """Build from the content of a ``preprocessor_config.json``. Unknown fields are ignored."""
        values = {name: value for name, value in image_processor_dict.items() if name in _FIELDS and value is not None}
        if "pad_size" in overrides or "size_divisor" in overrides or "pad_size" in values:
            values = {name: value for name, value in values.items() if name != "size_divisor"}
        overrides = {name: value for name, value in overrides.items() if name not in ("use_fast", "trust_remote_code")}
        return cls(**{**values, **overrides})

    @classmethod
    def from_json_file(cls, json_file: str | Path) -> Self:
        """Build from a file.

        Raises:
            ValueError: if it is not readable.
        """
        return cls.from_dict(_read(Path(json_file)))

    def to_dict(self) -> dict[str, Any]:
        """The settings, with the class's name, as Transformers writes them."""
        found = {name: getattr(self, name) for name in ("do_rescale", "rescale_factor", "do_pad", self._size_name)}
        return {"image_processor_type": "Swin2SRImageProcessor", **found}

    def to_json_string(self) -> str:
        """The settings as JSON."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: str | Path) -> None:
        """Write the settings to a file."""
        Path(json_file_path).write_text(self.to_json_string(), encoding="utf-8")

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **_: Any) -> list[str]:  # noqa: ANN401
        """Write ``preprocessor_config.json`` as Transformers does, creating the folder; returns the file's path.

        Raises:
            ValueError: if ``push_to_hub`` is true.
        """
        refuse_push(push_to_hub)
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        file = Path(save_directory) / CONFIG_NAME
        self.to_json_file(file)
        return [str(file)]

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoImageProcessor") -> None:
        """Accepted for code written for Transformers; has no effect."""


def _read(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is not a readable image processor configuration: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} does not contain a JSON object")  # noqa: TRY004 (a file, not an argument)
    return values


def check_pad_size(pad_size: int) -> int:
    """The pad size.

    Raises:
        ValueError: if it is not a positive integer.
    """
    if not isinstance(pad_size, int) or pad_size < 1:
        raise ValueError(f"pad_size must be a positive number of pixels, not {pad_size!r}")
    return pad_size


def take_pad_size(options: dict[str, Any], pad_size: Any) -> Any:  # noqa: ANN401
    """Take the pad size under either name out of the options."""
    other = options.pop("size_divisor", None)
    return pad_size if other is None else other
