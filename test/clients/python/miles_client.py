"""miles' HTTP client and its decoding of SGLang's answer, which slime shares."""

from types import SimpleNamespace

import asked
import httpx
from case import Answer, Target, case
from stand_ins import stand_in_for

stand_in_for("torch", "transformers", "ray", "PIL", "megatron", "huggingface_hub", "tokenizers")
from miles.rollout.generate_utils import generate_endpoint_utils as endpoint  # noqa: E402
from miles.utils import http_utils  # noqa: E402
from miles.utils.types import Sample  # noqa: E402


async def generate(target: Target, body: dict) -> Answer:
    args = SimpleNamespace(
        num_layers=target.layers,
        moe_router_topk=target.top_k,
        rollout_max_response_len=12,
        rollout_max_context_len=None,
        use_rollout_routing_replay=True,
    )
    payload, _ = endpoint.compute_request_payload(args, body["input_ids"], body["sampling_params"])
    async with httpx.AsyncClient(timeout=None) as client:
        output = await http_utils._post(client, target.url + asked.NATIVE, payload)
    new = [token for _, token, _ in output["meta_info"]["output_token_logprobs"]]
    sample = Sample(tokens=payload["input_ids"] + new)
    get = endpoint.get_rollout_topk_from_response
    return Answer([get(args, output, sample, "routed_experts")])


CASES = {"sglang": [case("generate", asked.NATIVE, asked.SGLANG_GENERATE, generate)]}
