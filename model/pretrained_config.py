"""The part of Transformers' ``PretrainedConfig`` that the configuration has: other names, labels and files."""

from __future__ import annotations

import dataclasses
import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from model.repository import FOLDER_OPTIONS, find_folder

CONFIG_NAME = "config.json"

GENERIC: dict[str, Any] = {
    "return_dict": True,
    "output_attentions": False,
    "output_hidden_states": False,
    "dtype": None,
    "architectures": None,
    "problem_type": None,
    "is_encoder_decoder": False,
    "is_decoder": False,
    "tie_word_embeddings": False,
    "chunk_size_feed_forward": 0,
    "torchscript": False,
    "_attn_implementation": "eager",
}
"""Attributes that every configuration of Transformers has, and their defaults. Files omit those with an underscore."""

DERIVED = ("model_type", "num_labels", "num_layers", "num_hidden_layers")
"""Fields of files that follow from other fields."""

MISSING = object()
"""The value of an attribute that does not exist."""


def _alias(name: str) -> Any:  # noqa: ANN401 (a property for type checkers)
    def read(config: PretrainedConfig) -> Any:  # noqa: ANN401
        return getattr(config, name)

    def write(config: PretrainedConfig, value: Any) -> None:  # noqa: ANN401
        setattr(config, name, value)

    return property(read, write, doc=f"Another name of ``{name}``.")


class PretrainedConfig(ABC):
    """Base of the configuration. A subclass is a dataclass with the fields of the network."""

    model_type: ClassVar[str] = "swin2sr"
    sub_configs: ClassVar[dict[str, Any]] = {}
    is_composition: ClassVar[bool] = False
    has_no_defaults_at_init: ClassVar[bool] = False
    keys_to_ignore_at_inference: ClassVar[list[str]] = []
    base_model_tp_plan: ClassVar[None] = None
    base_model_pp_plan: ClassVar[None] = None
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "embed_dim",
        "num_attention_heads": "num_heads",
        "torch_dtype": "dtype",
        "use_return_dict": "return_dict",
        "name_or_path": "_name_or_path",
        "attn_implementation": "_attn_implementation",
    }

    depths: Sequence[int]
    return_dict: bool
    output_attentions: bool
    output_hidden_states: bool
    dtype: Any
    architectures: list[str] | None
    _attn_implementation: str | None

    hidden_size = _alias("embed_dim")
    num_attention_heads = _alias("num_heads")
    torch_dtype = _alias("dtype")
    use_return_dict = _alias("return_dict")
    name_or_path = _alias("_name_or_path")

    @property
    def num_layers(self) -> int:
        """Number of stages, as Transformers counts layers."""
        return len(self.depths)

    @num_layers.setter
    def num_layers(self, number: int) -> None:
        raise NotImplementedError(f"the number of layers, {number}, follows from depths: set depths and num_heads")

    num_hidden_layers = num_layers

    @property
    def num_labels(self) -> int:
        """Number of entries of ``id2label``; networks for images do not use it."""
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, number: int) -> None:
        if number != self.num_labels:
            self._set_labels({label: f"LABEL_{label}" for label in range(number)})

    def _set_labels(self, labels: Mapping[Any, str], numbers: Mapping[str, Any] | None = None) -> None:
        self.id2label = {int(number): name for number, name in labels.items()}
        self.label2id = dict(numbers or {name: number for number, name in self.id2label.items()})

    def get_text_config(self, **_: Any) -> Self:  # noqa: ANN401
        """The configuration itself: there is no network for text."""
        return self

    @abstractmethod
    def _complete(self) -> None:
        """Bring all fields to their form and check each."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """All attributes in the form of JSON."""

    @abstractmethod
    def to_diff_dict(self) -> dict[str, Any]:
        """As ``to_dict``, without generic attributes that have their defaults."""

    @classmethod
    def _field_names(cls) -> set[str]:
        return {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]  # subclasses are dataclasses

    @classmethod
    def get_config_dict(cls, name: str | Path, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:  # noqa: ANN401
        """The content of a ``config.json``, and the options that are not those of ``find_folder``.

        Raises:
            ValueError: as ``from_pretrained``.
        """
        folder = {key: options.pop(key) for key in FOLDER_OPTIONS if key in options}
        return _read(_find(name, **folder), cls.model_type), options

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], *, return_unused_kwargs: bool = False, **options: Any) -> Any:  # noqa: ANN401 (with return_unused_kwargs a pair)
        """Build from the content of a ``config.json``; ``options`` that are attributes replace those of the file.

        Returns:
            The configuration; with ``return_unused_kwargs`` also the options that are no attributes.

        Raises:
            ValueError: if a known field has an impossible value or type.
        """
        values = {name: value for name, value in config_dict.items() if name not in DERIVED}
        known = cls._field_names() | GENERIC.keys() | cls.attribute_map.keys()
        used = {name: value for name, value in options.items() if name in known or not return_unused_kwargs}
        try:
            config = cls(**{**values, **used})
        except TypeError as error:
            raise ValueError(f"The configuration has a field of the wrong type: {error}.") from error
        unused = {name: value for name, value in options.items() if name not in used}
        return (config, unused) if return_unused_kwargs else config

    def to_json_string(self, use_diff: bool = True) -> str:
        """The configuration as JSON: ``to_diff_dict``, or all attributes."""
        values = self.to_diff_dict() if use_diff else self.to_dict()
        return json.dumps(values, indent=2, sort_keys=True, default=str) + "\n"

    def to_json_file(self, json_file_path: str | Path, use_diff: bool = True) -> None:
        """Write ``to_json_string`` to a file."""
        Path(json_file_path).write_text(self.to_json_string(use_diff), encoding="utf-8")

    @classmethod
    def from_json_file(cls, json_file: str | Path) -> Self:
        """Read a JSON file.

        Raises:
            ValueError: if it is not a Swin2SR configuration, naming the file.
        """
        found: Self = cls._from_file(Path(json_file), {})
        return found

    @classmethod
    def _from_file(cls, file: Path, replaced: Mapping[str, Any], **options: Any) -> Any:  # noqa: ANN401 (as from_dict)
        values = {**_read(file, cls.model_type), **replaced}
        try:
            return cls.from_dict(values, **options)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error

    def update(self, config_dict: Mapping[str, Any]) -> None:
        """Change attributes; aliases of Transformers are understood."""
        for name, value in config_dict.items():
            setattr(self, self.attribute_map.get(name, name), value)
        self._complete()

    def update_from_string(self, update_str: str) -> None:
        """Change attributes by a string such as ``"upscale=4,qkv_bias=false"``; each keeps its type.

        Raises:
            ValueError: if an attribute is unknown, is neither a number, a bool nor a string, or has such a value.
        """
        for name, text in (each.split("=") for each in update_str.split(",")):
            before = getattr(self, name, MISSING)
            if not isinstance(before, bool | int | float | str):
                raise ValueError(f"{name} is no attribute that a string can change")  # noqa: TRY004 (as an unknown one)
            if isinstance(before, bool) and text.lower() not in ("true", "false", "1", "0", "y", "n", "yes", "no"):
                raise ValueError(f"{name} must be true or false, not {text}")
            truth = text.lower() in ("true", "1", "y", "yes")
            setattr(self, name, truth if isinstance(before, bool) else type(before)(text))
        self._complete()

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        cache_dir: str | Path | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        subfolder: str | None = None,
        **options: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401 (as from_dict)
        """Read ``config.json`` in a folder, or the file itself, or that of a hub id.

        Args:
            pretrained_model_name_or_path: a folder, a file, or a hub id.
            cache_dir, revision, token, local_files_only, force_download, subfolder: as of ``find_folder``.
            options: as of ``from_dict``.

        Raises:
            ValueError: if there is no such file, or it is not a Swin2SR configuration, naming the file.
        """
        name = pretrained_model_name_or_path
        file = _find(
            name, cache_dir=cache_dir, revision=revision, token=token, local_files_only=local_files_only,
            force_download=force_download, subfolder=subfolder,
        )  # fmt: skip
        return cls._from_file(file, {"_name_or_path": str(name)}, **options)

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **_: Any) -> None:  # noqa: ANN401
        """Write ``config.json`` into a folder, which is created if it is missing.

        Raises:
            ValueError: if ``push_to_hub`` is true.
        """
        refuse_push(push_to_hub)
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        values = {"architectures": self.to_dict()["architectures"], **self.to_diff_dict()}
        text = json.dumps(values, indent=2, sort_keys=True, default=str)
        (Path(save_directory) / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")


def _find(name: str | Path, **options: Any) -> Path:  # noqa: ANN401 (those of find_folder)
    file = Path(name) if Path(name).suffix == ".json" else find_folder(name, **options)
    return file / CONFIG_NAME if file.is_dir() else file


def _read(file: Path, model_type: str) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}.") from error
    if not isinstance(values, dict) or values.get("model_type", "swin2sr") not in ("swin2sr", model_type):
        raise ValueError(f"{file} is not the configuration of a Swin2SR network.")
    return values


def refuse_push(push: bool) -> None:
    """Refuse ``push_to_hub``.

    Raises:
        ValueError: if ``push`` is true.
    """
    if push:
        raise ValueError("push_to_hub is not supported: save to a folder and upload it, for example with 'hf upload'")


def warn_unknown(where: str, options: Iterable[str]) -> None:
    """Warn that the options of a call are ignored, if there are any."""
    if names := sorted(options):
        warnings.warn(f"{where} does not have the options {', '.join(names)}; they are ignored", stacklevel=3)
