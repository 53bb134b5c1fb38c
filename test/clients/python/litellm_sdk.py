"""`litellm`, which passes members that it does not know on."""

import os

import asked
import golden
from case import Answer, Target, case

# Otherwise it fetches prices when it is imported.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import litellm  # noqa: E402

litellm.suppress_debug_info = True


def options(target: Target, body: dict) -> dict:
    return {
        **body,
        "model": f"openai/{body['model']}",
        "api_base": f"{target.url}/v1",
        "api_key": "none",
    }


def found(choices) -> Answer:
    values = [(choice.provider_specific_fields or {}).get("routed_experts") for choice in choices]
    return Answer([golden.npy(value) for value in values])


async def chat(target: Target, body: dict) -> Answer:
    return found((await litellm.acompletion(**options(target, body))).choices)


def chat_sync(target: Target, body: dict) -> Answer:
    return found(litellm.completion(**options(target, body)).choices)


CASES = {
    "vllm": [
        case("chat, async", asked.CHATS, asked.CHAT, chat),
        case("chat, sync", asked.CHATS, asked.CHAT, chat_sync),
    ],
}
