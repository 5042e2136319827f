"""App without Ray for `benchmarks/serving.py`, started with `uvicorn --factory plain_app:build`."""

import os

from fastapi import FastAPI

from mla_ray.serving.app import create_app
from mla_ray.serving.backend import LocalBackend
from mla_ray.serving.settings import Settings


def build() -> FastAPI:
    """Create the app with the packs in `MLA_PACKS` and the index in `MLA_INDEX`."""
    settings = Settings(packs=os.environ["MLA_PACKS"], index=os.environ["MLA_INDEX"])
    return create_app(LocalBackend(settings), settings)
