"""AReaL's `RemoteInfEngine` on SGLang, with which its workflows generate."""

from types import SimpleNamespace

import asked
from case import Answer, Target, case
from stand_ins import stand_in_for, without_init

stand_in_for("torch", "torchdata", "transformers", "ray", "PIL", "einops", "psutil")
stand_in_for("hydra", "omegaconf", "uvloop", "areal.infra.platforms", "areal.api.alloc_mode")
stand_in_for("areal.utils.name_resolve", "areal.utils.seqpack")
without_init("areal", "areal.infra", "areal.engine", "areal.engine.fsdp_utils")
without_init("areal.experimental", "areal.experimental.inference_service")
from areal.api.cli_args import GenerationHyperparameters, InferenceEngineConfig  # noqa: E402
from areal.api.io_struct import ModelRequest  # noqa: E402
from areal.experimental.inference_service.sglang.bridge import SGLangBridgeBackend  # noqa: E402
from areal.infra.remote_inf_engine import RemoteInfEngine  # noqa: E402


async def generate(target: Target, body: dict) -> Answer:
    params = body["sampling_params"]
    config = InferenceEngineConfig(return_routed_experts=True)
    engine = RemoteInfEngine(config, SGLangBridgeBackend())
    engine.addresses = [target.url.removeprefix("http://")]
    engine._workflow_executor = SimpleNamespace(is_paused=lambda: False)
    gconfig = GenerationHyperparameters(max_new_tokens=params["max_new_tokens"], greedy=True)
    request = ModelRequest(input_ids=list(body["input_ids"]), gconfig=gconfig)
    response = await engine.agenerate(request)
    rows = response.routed_experts
    return Answer([rows.reshape(-1, target.layers, target.top_k)])


CASES = {"sglang": [case("generate", asked.NATIVE, asked.SGLANG_GENERATE, generate)]}
