"""Settings in YAML files, with a message for each invalid key or value."""

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from mla_ray.runtime.bundled import or_bundled
from mla_ray.runtime.setting_faults import depth, dotted, fault_of

Settings = TypeVar("Settings", bound=BaseModel)


def load_settings(path: Path, kind: type[Settings]) -> Settings:
    """Load settings of a kind from a YAML file.

    Keys that the file does not name keep their defaults. A file that is bundled with mla-ray, such
    as `configs/paper/nlt.yaml`, is found by this name from any folder.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is not YAML, or has an invalid key or value. The message has one line
            per fault: the key, what is wrong, and what would be right.

    """
    try:
        given = yaml.safe_load(or_bundled(path).read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML: {error}") from error
    given = {} if given is None else given
    if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
        raise ValueError(f"{path}: not a mapping of keys to values, as `seed: 1` is")
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        known = list(_keys(kind))
        faults = [
            # Drop the names that pydantic appends for the members of a union.
            f"{path}: {dotted(each['loc'][: depth(given, each['loc'])])}: {fault_of(each, known)}"
            for each in error.errors()
        ]
        raise ValueError("\n".join(dict.fromkeys(faults))) from error


def _keys(kind: type[BaseModel]) -> Iterator[str]:
    """Yield all keys of the settings, with dots in nested keys."""
    for name, field in kind.model_fields.items():
        if isinstance(field.default, BaseModel):
            yield from (f"{name}.{key}" for key in _keys(type(field.default)))
        else:
            yield name
