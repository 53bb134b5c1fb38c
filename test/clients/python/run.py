"""Lets one client ask, and prints as JSON what it has decoded.

    python run.py CLIENT

Standard input is `{"kind": ..., "compare": {...}, "refuse": {...}}`: `kind` is the API of the
engines, the other two are servers by their names. A client compares on the former, so its arrays
are printed; the latter refuse, so what it does about that is printed.
"""

import asyncio
import hashlib
import importlib
import inspect
import json
import sys
import time

import numpy as np
from case import Case, Target


def digest(array: np.ndarray | None) -> dict | None:
    """What tells whether two arrays are equal. The dtype is the client's affair."""
    if array is None:
        return None
    same = np.ascontiguousarray(array, dtype="<i4")
    sha256 = hashlib.sha256(same.tobytes()).hexdigest()
    return {"shape": list(array.shape), "dtype": array.dtype.name, "sha256": sha256}


async def decoded(case: Case, targets: dict[str, Target]) -> dict:
    """What a client has decoded of each server's answer, and what NumPy has of the oracle's."""
    found = {}
    context = None
    for name, target in targets.items():
        answer = await finished(case.ask(target))
        found[name] = [digest(array) for array in answer.arrays]
        context = answer.context if name == "oracle" else context
    found["golden"] = [digest(array) for array in case.golden(targets["oracle"], context)]
    return found


async def finished(answer):
    """The answer of a client that is synchronous or not."""
    return await answer if inspect.isawaitable(answer) else answer


async def refused(case: Case, target: Target) -> dict:
    """What a client raises, or that it returns, and how many requests it has sent."""
    before = target.requests()
    try:
        answer = await finished(case.ask(target))
        found = {"returned": [digest(array) for array in answer.arrays]}
    except Exception as error:
        kind = type(error)
        name = f"{kind.__module__.split('.')[0]}.{kind.__qualname__}"
        found = {"raised": name, "text": str(error)[:300]}
    return {**found, "requests": target.requests() - before}


def skip_waits() -> None:
    """Clients that try again wait before; nothing is learnt from that."""
    now = asyncio.sleep
    asyncio.sleep = lambda _, result=None: now(0, result)
    time.sleep = lambda _: None


def targets_of(servers: dict) -> dict[str, Target]:
    return {name: Target(**server) for name, server in servers.items()}


async def main() -> None:
    asked = json.load(sys.stdin)
    client = importlib.import_module(sys.argv[1])
    cases: list[Case] = client.CASES[asked["kind"]]
    found: dict = {"decoded": {}, "refused": {}}
    for case in cases:
        found["decoded"][case.name] = await decoded(case, targets_of(asked["compare"]))
    skip_waits()
    refusing = targets_of(asked["refuse"])
    for case in cases:
        found["refused"][case.name] = {
            way: await refused(case, target) for way, target in refusing.items()
        }
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main())
