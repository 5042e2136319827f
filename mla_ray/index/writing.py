"""Both collections of an index, open for writing."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from mla_ray.index.backend import VectorSpace
from mla_ray.index.collection import CAPTIONS, IMAGES, CaptionIndex
from mla_ray.index.settings import ENGINE_DEFAULTS, IndexSettings


@contextmanager
def open_collections(
    url: str, space: VectorSpace, settings: IndexSettings = ENGINE_DEFAULTS
) -> Iterator[dict[str, CaptionIndex]]:
    """Yield the collections `images` and `captions`, open for writing; create them if missing.

    Open them before expensive work, so that an error comes first.

    Raises:
        PermissionError: This process may not write to a collection's folder.
        RuntimeError: The server's key may not write.

    """
    with ExitStack() as stack:
        collections = {}
        for name in (IMAGES, CAPTIONS):
            index = CaptionIndex.open(url, space, name, settings=settings)
            collections[name] = stack.enter_context(index)
            index.check_writable()
        yield collections
