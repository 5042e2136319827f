"""Image vectors that other software made: a NumPy file, or a collection of a Qdrant server.

Shapes: N images, E joint embedding size.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit
from uuid import UUID

import numpy as np
from qdrant_client import models

from mla_ray.data.problems import InvalidTable
from mla_ray.data.table_columns import Columns
from mla_ray.data.table_files import files_of_table
from mla_ray.data.table_formats import read_chunks
from mla_ray.index.backend import SCROLL, SCROLL_VECTORS, ForeignLayout
from mla_ray.index.batches import batched
from mla_ray.index.server import connect, scroll_records
from mla_ray.index.server_errors import reaching
from mla_ray.index.server_requests import field_of
from mla_ray.index.server_settings import vector_params
from mla_ray.model.directions import Floats
from mla_ray.runtime.storage import as_path

BATCH = 256
"""Rows of a NumPy file that are read at a time."""


PointKey = int | str | UUID
"""Row of a file, or id of a point."""


class ForeignImage(NamedTuple):
    """One image of other software."""

    key: PointKey  # where its vector is: row of the file, or id of the point
    id: str  # the image's id
    file: str | None  # path or URL of the image, if it is known


class ForeignVectors(Protocol):
    """Image vectors of other software."""

    where: str
    """Where they are, for messages."""
    name: str
    """Default name of their source."""
    dim: int
    """E"""
    total: int
    """N"""

    def images(self) -> Iterator[ForeignImage]:
        """Yield all images, without their vectors."""

    def vectors(self, keys: Sequence[PointKey]) -> Floats:
        """Return the vectors `[N, E]` of some images, by their keys."""
        ...

    def batches(self) -> Iterator[tuple[list[str], Floats]]:
        """Yield ids and vectors of all images, in the order of `images`."""

    def close(self) -> None:
        """Release the file or the connection."""


class NumpyVectors:
    """Vectors `[N, E]` in a `.npy` file, with a table of their ids in the same order.

    The file is mapped into memory, not read. Pickled objects are refused.
    """

    def __init__(self, file: Path, ids: str, id_field: str, image_field: str | None) -> None:
        """Open the file and read the table.

        Args:
            file: The `.npy` file, of float16, float32 or float64.
            ids: Path or URL of the table, with one row a vector.
            id_field: The table's column of ids.
            image_field: The table's column of paths or URLs of the images.

        Raises:
            ValueError: The file is no array `[N, E]` of floats, or the table has another number
                of rows, or is invalid (`InvalidTable`).

        """
        self.where, self.name = str(file), file.stem
        try:
            self._vectors = np.load(file, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            raise ValueError(f"{file} is no NumPy array of numbers: {error}") from error
        if self._vectors.ndim != 2 or self._vectors.dtype.kind != "f":
            raise ValueError(
                f"{file} has shape {list(self._vectors.shape)} of {self._vectors.dtype}; give one "
                "vector of floats a row, [N, E]"
            )
        self.total, self.dim = self._vectors.shape
        self._images = list(_table_images(ids, id_field, image_field))
        if len(self._images) != self.total:
            raise ValueError(
                f"{ids} has {len(self._images):,} rows, {file} has {self.total:,} vectors; give "
                "one row a vector, in the same order"
            )

    def images(self) -> Iterator[ForeignImage]:
        """Yield all images, without their vectors."""
        return iter(self._images)

    def vectors(self, keys: Sequence[PointKey]) -> Floats:
        """Return the vectors `[N, E]` of some images, by their keys."""
        return np.asarray(self._vectors[np.array(keys, np.int64)], np.float32)

    def batches(self) -> Iterator[tuple[list[str], Floats]]:
        """Yield ids and vectors of all images, in the order of `images`."""
        for batch in batched(self._images, BATCH):
            yield [image.id for image in batch], self.vectors([image.key for image in batch])

    def close(self) -> None:
        """Do nothing: Python unmaps the file."""


def _table_images(ids: str, id_field: str, image_field: str | None) -> Iterator[ForeignImage]:
    """Yield the images of a table, each with the number of its row as key.

    Raises:
        InvalidTable: A column is missing, or a row is damaged or has no id.

    """
    columns = Columns([id_field, *([image_field] if image_field else [])], {})
    number = 0
    for file in files_of_table(as_path(ids)):
        for chunk in read_chunks(file, columns):
            empty = [row for row, name in chunk.values("row", id_field) if name in (None, "")]
            chunk.refuse(dict.fromkeys(empty, f"{id_field!r} is empty"))
            if chunk.problems:
                raise InvalidTable(chunk.problems)
            for name, image in chunk.values(id_field, image_field or id_field):
                has_path = image_field is not None and isinstance(image, str)
                yield ForeignImage(number, str(name), image if has_path else None)
                number += 1


class QdrantVectors:
    """Vectors of one collection of a Qdrant server, made by any software. It is only read."""

    def __init__(
        self, url: str, vector: str, id_field: str | None, image_field: str | None
    ) -> None:
        """Connect to the server and look at the collection.

        Args:
            url: `http(s)://host:port/collection` or `grpc(s)://host:port/collection`.
            vector: Name of the vector; "" for a collection whose vector has no name.
            id_field: Payload field of the images' ids; None for the ids of the points.
            image_field: Payload field of the paths or URLs of the images.

        Raises:
            ValueError: The URL names no collection, or the collection has no such vector.
            ConnectionError: No server answers.
            RuntimeError: The server refuses the request, as for a collection that it lacks.

        """
        address = urlsplit(url)
        self.where, self.name = url, address.path.strip("/")
        if not self.name or "/" in self.name:
            raise ValueError(f"{url!r} names no collection; give http://host:port/COLLECTION")
        self.server = f"{address.scheme}://{address.netloc}"
        self.layout = ForeignLayout(vector, id_field, self.name)
        self._image_field = image_field
        self.client = connect(self.server)
        with reaching(self.server):
            info = self.client.get_collection(self.name)
            self.total = self.client.count(self.name, exact=True).count
        by_name = vector_params(info.config)
        if vector not in by_name:
            names = ", ".join(repr(name) for name in sorted(by_name))
            raise ValueError(
                f"{url} has no vector {vector!r}, but {names}; give one of them with --vector"
            )
        if by_name[vector].multivector_config:
            raise ValueError(f"{url}: vector {vector!r} is a list of vectors a point; give another")
        self.dim = by_name[vector].size
        self.distance = by_name[vector].distance

    def images(self) -> Iterator[ForeignImage]:
        """Yield all images, without their vectors.

        Raises:
            ValueError: A point lacks the field of ids.

        """
        fields = [field for field in (self.layout.id_field, self._image_field) if field]
        options: dict[str, Any] = {"limit": SCROLL, "with_payload": fields or False}
        for point in scroll_records(self.client, self.server, self.name, **options):
            file = field_of(point.payload or {}, self._image_field) if self._image_field else None
            yield ForeignImage(point.id, self._id_of(point), None if file is None else str(file))

    def vectors(self, keys: Sequence[PointKey]) -> Floats:
        """Return the vectors `[N, E]` of some images, by their keys."""
        with reaching(self.server):
            points = self.client.retrieve(
                self.name, list(keys), with_payload=False, with_vectors=self._with_vectors()
            )
        found = {point.id: point for point in points}
        return self._rows([found[key] for key in keys])

    def batches(self) -> Iterator[tuple[list[str], Floats]]:
        """Yield ids and vectors of all images, in the order of `images`."""
        options: dict[str, Any] = {
            "limit": SCROLL_VECTORS,
            "with_payload": [self.layout.id_field] if self.layout.id_field else False,
            "with_vectors": self._with_vectors(),
        }
        points = scroll_records(self.client, self.server, self.name, **options)
        for batch in batched(points, SCROLL_VECTORS):
            yield [self._id_of(point) for point in batch], self._rows(batch)

    def close(self) -> None:
        """Close the client."""
        self.client.close()

    def _with_vectors(self) -> bool | list[str]:
        return [self.layout.vector] if self.layout.vector else True

    def _id_of(self, point: models.Record) -> str:
        field = self.layout.id_field
        if field is None:
            return str(point.id)
        found = field_of(point.payload or {}, field)
        if not isinstance(found, str | int) or found == "":
            raise ValueError(
                f"{self.where}: point {point.id} has {found!r} in the field {field!r}; "
                "name a field with an id in every point, or leave --id-field out"
            )
        return str(found)

    def _rows(self, points: Sequence[models.Record]) -> Floats:
        rows = np.zeros((len(points), self.dim), np.float32)
        for row, point in zip(rows, points, strict=True):
            vector: Any = point.vector
            if isinstance(vector, dict):
                vector = vector.get(self.layout.vector)
            if vector is not None:  # a point without this vector stays zero, and is rejected
                row[:] = vector
        return rows
