"""The `openai` SDK: synchronous, asynchronous, several choices, chats and streams."""

import asked
import golden
from case import Answer, Target, case
from openai import AsyncOpenAI, OpenAI

# The SDK refuses parameters that it does not know, unless they come as its `extra_body`.
OWN = {"return_routed_experts"}


def options(target: Target) -> dict:
    return {"base_url": f"{target.url}/v1", "api_key": "none"}


def arguments(body: dict) -> dict:
    extra = {key: value for key, value in body.items() if key in OWN}
    return {**{key: body[key] for key in body if key not in OWN}, "extra_body": extra}


def of_vllm(answer) -> Answer:
    """The SDK keeps members that it does not know."""
    values = [choice.routed_experts for choice in answer.choices]
    return Answer([golden.npy(value) for value in values])


def of_sglang(answer, target: Target) -> Answer:
    value = answer.model_extra.get("sglext")
    return Answer([value and golden.raw(value["routed_experts"], target)])


def completion(target: Target, body: dict) -> Answer:
    with OpenAI(**options(target)) as client:
        return of_vllm(client.completions.create(**arguments(body)))


async def completion_async(target: Target, body: dict) -> Answer:
    async with AsyncOpenAI(**options(target)) as client:
        return of_vllm(await client.completions.create(**arguments(body)))


async def chat_async(target: Target, body: dict) -> Answer:
    async with AsyncOpenAI(**options(target)) as client:
        return of_vllm(await client.chat.completions.create(**arguments(body)))


def completion_stream(target: Target, body: dict) -> Answer:
    values = {}
    with OpenAI(**options(target)) as client:
        for event in client.completions.create(**arguments(body), stream=True):
            for choice in event.choices:
                value = choice.model_extra.get("routed_experts")
                if value is not None or choice.finish_reason is not None:
                    values[choice.index] = value
    return Answer([golden.npy(value) for _, value in sorted(values.items())])


async def chat_stream_async(target: Target, body: dict) -> Answer:
    values = {}
    async with AsyncOpenAI(**options(target)) as client:
        async for event in await client.chat.completions.create(**arguments(body), stream=True):
            for choice in event.choices:
                value = choice.model_extra.get("routed_experts")
                if value is not None or choice.finish_reason is not None:
                    values[choice.index] = value
    return Answer([golden.npy(value) for _, value in sorted(values.items())])


def sglang_completion(target: Target, body: dict) -> Answer:
    with OpenAI(**options(target)) as client:
        return of_sglang(client.completions.create(**arguments(body)), target)


async def sglang_chat_stream(target: Target, body: dict) -> Answer:
    value = None
    async with AsyncOpenAI(**options(target)) as client:
        async for event in await client.chat.completions.create(**arguments(body), stream=True):
            value = event.model_extra.get("sglext") or value
    return Answer([value and golden.raw(value["routed_experts"], target)])


CASES = {
    "vllm": [
        case("completions, sync", asked.COMPLETIONS, asked.COMPLETION, completion),
        case("completions, async", asked.COMPLETIONS, asked.COMPLETION, completion_async),
        case("completions, n = 2", asked.COMPLETIONS, asked.SAMPLED, completion),
        case("chat, async", asked.CHATS, asked.CHAT, chat_async),
        case("completions, stream", asked.COMPLETIONS, asked.COMPLETION, completion_stream),
        case("completions, stream, n = 2", asked.COMPLETIONS, asked.SAMPLED, completion_stream),
        case("chat, async stream", asked.CHATS, asked.CHAT, chat_stream_async),
    ],
    "sglang": [
        case("completions, sync", asked.COMPLETIONS, asked.SGLANG_COMPLETION, sglang_completion),
        case("chat, async stream", asked.CHATS, asked.SGLANG_CHAT, sglang_chat_stream),
    ],
}
