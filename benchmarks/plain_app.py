"""The app without Ray, for `benchmarks/serving.py`: uvicorn --factory plain_app:build."""

import os

from fastapi import FastAPI

from serve.app import create_app
from serve.backend import LocalBackend
from serve.settings import Settings


def build() -> FastAPI:
    settings = Settings(packs=os.environ["MLA_PACKS"], index=os.environ["MLA_INDEX"])
    return create_app(LocalBackend(settings), settings)
