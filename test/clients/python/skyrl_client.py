"""SkyRL's own HTTP client, which decodes and checks the array, and its trace of turns.

It asks `/skyrl/v1/generate`, an endpoint of SkyRL's server that is no part of vLLM and takes no
`kv_transfer_params`. Here its request goes to `/inference/v1/generate` instead.
"""

import asked
import golden
from case import Answer, Case, Target, case
from stand_ins import stand_in_for, without_init

stand_in_for("torch", "transformers", "ray", "loguru", "skyrl.utils.log")
without_init("skyrl", "skyrl.backends", "skyrl.backends.skyrl_train")
without_init("skyrl.backends.skyrl_train.utils")
from skyrl.backends.skyrl_train.inference_servers.remote_inference_client import (  # noqa: E402
    RemoteGenerateClient,
)
from skyrl.backends.skyrl_train.utils.routed_experts import RoutedExpertTrace  # noqa: E402

SECOND_ASK = [3 + (i * 11) % 250 for i in range(40)]


class Client(RemoteGenerateClient):
    async def _post(self, url, json, headers=None, **options):
        url = url.replace("/skyrl/v1/generate", asked.VLLM_GENERATE)
        return await super()._post(url, json, headers, **options)


async def generate(target: Target, tokens: list[int], start: int | None = None):
    client = Client(target.url)
    try:
        return await client.generate(
            prompt_token_ids=tokens,
            sampling_params=asked.GENERATE["sampling_params"],
            session_id=None,
            model=asked.MODEL,
            return_routed_experts=True,
            routed_experts_prompt_start=start,
        )
    finally:
        await client.aclose()


async def one(target: Target, body: dict) -> Answer:
    return Answer([(await generate(target, body["token_ids"])).routed_experts])


async def two_turns(target: Target) -> Answer:
    """The second turn asks for the rows that the trace has not yet."""
    trace = RoutedExpertTrace()
    tokens = list(asked.TOKENS)
    for more in (SECOND_ASK, []):
        result = await generate(target, tokens, trace.prompt_start)
        trace.record_generation(
            prompt_token_count=len(tokens),
            generated_token_count=len(result.response_ids),
            routed_experts=result.routed_experts,
        )
        tokens += [*result.response_ids, *more]
    rows = trace.finalize(token_count=len(tokens), loss_mask=[0] * len(tokens))
    return Answer([rows], tokens)


CASES = {
    "object": [
        case("generate", asked.VLLM_GENERATE, asked.GENERATE, one),
        Case("two turns", two_turns, golden.conversation),
    ]
}
