"""Keys of contents: a text or the bytes of an image, by their hash. Does not import torch."""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def key_of(content: str | bytes) -> str:
    """Return the key of a text or of an image's bytes: 128 bits of BLAKE2b, in hex."""
    data = content.encode() if isinstance(content, str) else content
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def hashes(keys: Sequence[str]) -> npt.NDArray[np.uint64]:
    """Return the first 64 bits of keys, `[N]` uint64. Blocks of keys are ranges of these bits."""
    joined = bytes.fromhex("".join(key[:16] for key in keys))
    return np.frombuffer(joined, ">u8").astype(np.uint64)
