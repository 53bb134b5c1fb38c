"""Clients of HTTP that know nothing of language models: `httpx` with HTTP/2, and `aiohttp`."""

import json

import aiohttp
import asked
import golden
import httpx
from case import Answer, Target, case

PATHS = {"prompt": asked.COMPLETIONS, "token_ids": asked.VLLM_GENERATE, "input_ids": asked.NATIVE}


def path_of(body: dict) -> str:
    return next(path for key, path in PATHS.items() if key in body)


async def httpx_http2(target: Target, body: dict) -> Answer:
    # Without TLS a server can not offer HTTP/2: the client has to know.
    version = {"http1": not target.http2, "http2": target.http2}
    async with httpx.AsyncClient(**version, timeout=None) as client:
        response = await client.post(target.url + path_of(body), json=body)
        if target.http2:
            assert response.http_version == "HTTP/2"
        answer = response.raise_for_status().json()
        return Answer(golden.arrays(answer, target))


async def httpx_stream(target: Target, body: dict) -> Answer:
    """The events of `/inference/v1/generate`."""
    value = None
    version = {"http1": not target.http2, "http2": target.http2}
    async with httpx.AsyncClient(**version, timeout=None) as client:
        asks = {"json": {**body, "stream": True}}
        async with client.stream("POST", target.url + path_of(body), **asks) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    choices = json.loads(line.removeprefix("data: "))["choices"]
                    value = choices[0]["routed_experts"] if choices else value
    return Answer([golden.npy(value)])


async def aiohttp_json(target: Target, body: dict) -> Answer:
    async with aiohttp.ClientSession(raise_for_status=True) as session:
        async with session.post(target.url + path_of(body), json=body) as response:
            return Answer(golden.arrays(await response.json(), target))


CASES = {
    "vllm": [
        case("httpx, HTTP/2", asked.COMPLETIONS, asked.COMPLETION, httpx_http2),
        case("httpx, HTTP/2, events", asked.VLLM_GENERATE, asked.GENERATE, httpx_stream),
        case("aiohttp", asked.COMPLETIONS, asked.COMPLETION, aiohttp_json),
    ],
    "sglang": [
        case("httpx, HTTP/2", asked.NATIVE, asked.SGLANG_GENERATE, httpx_http2),
        case("aiohttp", asked.NATIVE, asked.SGLANG_GENERATE, aiohttp_json),
    ],
}
