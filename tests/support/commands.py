"""What the fixture `mla` returns: a command that has ended."""

import json
from collections.abc import Callable
from typing import NamedTuple


class Run(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> object:
        return json.loads(self.out)


Mla = Callable[..., Run]
