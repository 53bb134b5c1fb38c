"""What a client is asked to do, and on which server."""

import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import golden
import numpy as np


@dataclass
class Target:
    """A server that a client talks to: Envoy, the oracle, or a router that merges nothing."""

    url: str
    http2: bool
    layers: int
    top_k: int
    count: str | None = None
    """Where the number of requests that decode has seen is to be had."""

    def requests(self) -> int:
        with urllib.request.urlopen(self.count) as response:
            return int(response.read())


@dataclass
class Answer:
    """What a client has decoded: an array for each choice, and what the golden needs to know."""

    arrays: list[np.ndarray | None]
    context: Any = None


@dataclass
class Case:
    """One way in which a client asks.

    `ask` returns an `Answer`, or a coroutine of one. `golden` returns the arrays that NumPy alone
    decodes of what the oracle answers.
    """

    name: str
    ask: Callable[[Target], Any]
    golden: Callable[[Target, Any], list[np.ndarray]]


def case(name: str, path: str, body: dict, ask: Callable[[Target, dict], Any]) -> Case:
    """A case that sends one request, which the golden sends as well."""
    return Case(
        name,
        lambda target: ask(target, dict(body)),
        lambda oracle, _: golden.ask(oracle, path, body),
    )
