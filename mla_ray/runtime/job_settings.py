"""Settings of a job: from flags, a YAML file and defaults, with the fault of each bad one.

A setting's value is the flag's, else the file's, else the default. Flags are named as keys are,
with dots: `--nlt.steps 5` leaves `nlt.batch` as it was. A list is a flag given again and again,
`a,b` or JSON; a dict is `--key a=1 --key b=2` or JSON, and is merged with the file's.
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
    """Settings of a job: derive, and annotate fields; their docstrings are what `--help` prints.

    A nested model has an instance as its default, so that a part of it can be set.
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
        """Only what is passed: a variable of the environment that is named as a key is not read."""
        return (init_settings,)


SettingsT = TypeVar("SettingsT", bound=JobSettings)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Usage(message)

    @property
    def keys(self) -> list[str]:
        return [flag.removeprefix("--") for flag in self._option_string_actions]


def load(
    settings_class: type[SettingsT], argv: Sequence[str], prog: str | None = None
) -> SettingsT:
    """Settings from flags, the file they name with `--config`, and defaults, in this order.

    Raises:
        Usage: a key is unknown, missing or of the wrong type, or the file cannot be read.

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
            cli_avoid_json=True,  # in the help
            cli_parse_none_str="null",
            cli_implicit_flags=True,
        )
        given, unknown = parser.parse_known_args(argv)
        if unknown:
            raise Usage(_unknown_flag(unknown[0], parser.keys))
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
        faults = dict.fromkeys(_fault(e, flags(), file, path, parser.keys) for e in error.errors())
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


def _unknown_flag(argument: str, keys: list[str]) -> str:
    if not argument.startswith("-"):
        return f"unexpected argument {argument!r}"
    flag = argument.split("=")[0]
    return f"unknown flag {flag}{near(flag.lstrip('-'), keys, '--')}"


def _fault(
    error: ErrorDetails,
    flags: Mapping[str, Any],
    file: Mapping[str, Any],
    path: str | None,
    keys: list[str],
) -> str:
    """One of pydantic's errors, with the flag or the file and key that it is about."""
    location = error["loc"]
    in_flags, in_file = depth(flags, location), depth(file, location)
    if error["type"] == "missing":
        return f"--{dotted(location)}: missing; give the flag, or the key in the file of --config"
    # Beyond what was given are pydantic's names for the members of a union.
    key = dotted(location[: max(in_flags, in_file)] or location)
    if in_flags >= in_file:
        where, dashes = f"--{key}", "--"
    else:
        where, dashes = f"{path}: {key}", ""
    return f"{where}: {fault_of(error, keys, dashes)}"
