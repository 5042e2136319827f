"""Settings of a job from flags, a YAML file and defaults, with a message for each invalid one.

A flag overrides the file, and the file overrides the default. Flags are named like keys, with
dots and hyphens: `--train.vocab-size` sets `vocab_size` in `train` and no other key of `train`.
Flags with underscores work too. A list is a repeated flag, `a,b` or JSON. A dict is
`--key a=1 --key b=2` or JSON, and is merged with the dict in the file.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)
from pydantic_settings.sources import DefaultSettingsSource

from mla_ray.runtime.bundled import or_bundled
from mla_ray.runtime.exit_codes import Exit, Usage, exit_code
from mla_ray.runtime.setting_faults import depth, dotted, fault_of, near
from mla_ray.runtime.storage import as_path, read_bytes


class JobSettings(BaseSettings):
    """Base class for the settings of a job.

    Subclasses annotate fields. `--help` prints the docstrings of the fields. A field that is a
    nested model needs an instance as its default, so that users can set a part of it.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        case_sensitive=True,
        use_attribute_docstrings=True,
        nested_model_default_partial_update=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the arguments as the only source: environment variables are ignored."""
        return (init_settings,)


SettingsT = TypeVar("SettingsT", bound=JobSettings)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Usage(message)

    @property
    def flags(self) -> list[str]:
        return [flag.removeprefix("--") for flag in self._option_string_actions]

    @property
    def keys(self) -> list[str]:
        return [flag.replace("-", "_") for flag in self.flags]


def load(
    settings_class: type[SettingsT], argv: Sequence[str], prog: str | None = None
) -> SettingsT:
    """Load settings from flags, the file of the flag `--config`, and defaults, in this order.

    `--help` prints the settings and exits.

    Args:
        settings_class: The class of the settings.
        argv: Flags, without the name of the program.
        prog: Name of the program in `--help`.

    Raises:
        Usage: A key is unknown, missing or of the wrong type, or the file cannot be read.

    """
    parser = _Parser(
        prog=prog,
        description=settings_class.__doc__,
        epilog="Lists: the flag repeated, a,b or JSON. Dicts: --key a=1 --key b=2 or JSON.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", metavar="FILE", help="YAML of these keys, a path or a URL; flags override it"
    )
    try:
        flags: CliSettingsSource[Any] = CliSettingsSource(
            settings_class,
            root_parser=parser,
            cli_avoid_json=True,  # the help does not list nested models as JSON flags
            cli_parse_none_str="null",
            cli_implicit_flags=True,
            cli_kebab_case=True,
        )
        given, unknown = parser.parse_known_args([_with_hyphens(argument) for argument in argv])
        if unknown:
            raise Usage(_unknown_flag(unknown[0], parser.flags))
        path = vars(given).pop("config")
        flags(parsed_args=given)
        file = _read(path) if path else {}
        sources = (
            flags,
            InitSettingsSource(settings_class, file),
            DefaultSettingsSource(settings_class),
        )
        return settings_class(**{"_build_sources": (sources, {})})
    except SettingsError as error:
        raise Usage(str(error)) from error
    except ValidationError as error:
        faults = dict.fromkeys(_fault(e, flags(), file, path, parser) for e in error.errors())
        raise Usage("\n".join(faults)) from error


def _read(path: str) -> dict[str, Any]:
    try:
        file = as_path(path if "://" in path else or_bundled(Path(path)))
        settings = yaml.safe_load(read_bytes(file)) or {}
    except (OSError, ValueError, ImportError, yaml.YAMLError) as error:
        if exit_code(error) is Exit.AGAIN:
            raise
        said = str(error).removeprefix(f"{path}: ")
        raise Usage(f"--config {path}: {said}") from error
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise Usage(f"--config {path}: not a mapping of keys to values")
    return settings


def _with_hyphens(argument: str) -> str:
    """Return a flag with hyphens for underscores; any other argument as it is."""
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument.partition("=")
    return flag.replace("_", "-") + equals + value


def _unknown_flag(argument: str, flags: list[str]) -> str:
    if not argument.startswith("-"):
        return f"unexpected argument {argument!r}"
    flag = argument.split("=")[0]
    return f"unknown flag {flag}{near(flag.lstrip('-'), flags, '--')}"


def _fault(
    error: ErrorDetails,
    flags: Mapping[str, Any],
    file: Mapping[str, Any],
    path: str | None,
    parser: _Parser,
) -> str:
    """Return the message for a pydantic error: the flag, or the file and key, and the fault."""
    location = error["loc"]
    in_flags, in_file = depth(flags, location), depth(file, location)
    if error["type"] == "missing":
        flag = _with_hyphens(f"--{dotted(location)}")
        return f"{flag}: missing; give the flag, or the key in the file of --config"
    # Pydantic appends names of union members to the location. Keep only keys that were given.
    key = dotted(location[: max(in_flags, in_file)] or location)
    if in_flags >= in_file:
        return f"{_with_hyphens(f'--{key}')}: {fault_of(error, parser.flags, '--')}"
    return f"{path}: {key}: {fault_of(error, parser.keys)}"
