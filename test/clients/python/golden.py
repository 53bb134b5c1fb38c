"""Arrays as NumPy alone decodes them, of answers that urllib alone has fetched."""

import base64
import io
import json
import urllib.request

import asked
import numpy as np


def ask(target, path: str, body: dict) -> list[np.ndarray]:
    """Sends a request and returns the arrays of the answer."""
    plain = {key: value for key, value in body.items() if not key.startswith("stream")}
    request = urllib.request.Request(
        target.url + path,
        json.dumps(plain).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:
        return arrays(json.load(response), target)


def conversation(target, tokens: list[int]) -> list[np.ndarray]:
    """The rows of all tokens but the last, asked for as the prompt of one request."""
    sampling = {"max_tokens": 1, "temperature": 0}
    body = {"model": asked.MODEL, "token_ids": tokens, "sampling_params": sampling}
    return [rows[: len(tokens) - 1] for rows in ask(target, asked.VLLM_GENERATE, body)]


def arrays(answer: dict, target) -> list[np.ndarray | None]:
    """The arrays of an answer of vLLM's, prime-rl's or SGLang's."""
    for of_sglang in ("meta_info", "sglext"):
        if of_sglang in answer:
            return [raw(answer[of_sglang]["routed_experts"], target)]
    values = [choice["routed_experts"] for choice in answer["choices"]]
    return [packed(value) if isinstance(value, dict) else npy(value) for value in values]


def npy(text: str | None) -> np.ndarray | None:
    """vLLM's: a `.npy` file in base64."""
    return text and np.load(io.BytesIO(base64.b64decode(text, validate=True)))


def packed(value: dict) -> np.ndarray:
    """prime-rl's and SkyRL's: raw bytes beside their shape and dtype."""
    data = base64.b64decode(value["data"], validate=True)
    return np.frombuffer(data, value.get("dtype", "uint8")).reshape(value["shape"])


def raw(text: str | None, target) -> np.ndarray | None:
    """SGLang's: raw int32, whose shape the model tells."""
    if text is None:
        return None
    data = base64.b64decode(text, validate=True)
    return np.frombuffer(data, "<i4").reshape(-1, target.layers, target.top_k)
