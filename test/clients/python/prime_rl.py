"""prime-rl's way: `verifiers` asks through the client of `renderers`, and joins the turns' rows."""

import asked
import golden
import renderers
import renderers.base
from case import Answer, Case, Target
from renderers.base import ParsedResponse, RenderedTokens
from stand_ins import without_init

without_init("verifiers", "verifiers.v1")
from verifiers.v1.clients.train import TrainClient  # noqa: E402
from verifiers.v1.configs.client import TrainClientConfig  # noqa: E402
from verifiers.v1.dialects import ChatDialect  # noqa: E402
from verifiers.v1.graph import prepare_turn  # noqa: E402
from verifiers.v1.trace import Trace  # noqa: E402
from verifiers.v1.types import SamplingConfig, UserMessage  # noqa: E402

END, FIRST_BYTE = 2, 3
ASKS = ["Which experts does this token have? " * 3, "And which does the next one have?"]


class Renderer:
    """A renderer whose tokens are bytes, because a model's own would have to be downloaded."""

    is_prefix_stable = True
    supports_tools = False

    def render(self, messages, *, tools=None, add_generation_prompt=False) -> RenderedTokens:
        ids: list[int] = []
        owners: list[int] = []
        for index, message in enumerate(messages):
            text = f"{message['role']}\n{message['content']}"
            new = [*(byte + FIRST_BYTE for byte in text.encode()), END]
            ids += new
            owners += [index] * len(new)
        if add_generation_prompt:
            new = [byte + FIRST_BYTE for byte in b"assistant\n"]
            ids += new
            owners += [-1] * len(new)
        roles = [message["role"] for message in messages]
        return RenderedTokens(token_ids=ids, message_indices=owners, message_roles=roles)

    def bridge_to_next_turn(self, prompt_ids, completion_ids, new, *, tools=None) -> RenderedTokens:
        before = [*prompt_ids, *completion_ids]
        tail = self.render(new, add_generation_prompt=True)
        return RenderedTokens(
            token_ids=before + tail.token_ids,
            message_indices=[-1] * len(before) + tail.message_indices,
            message_roles=tail.message_roles,
        )

    def parse_response(self, token_ids, *, tools=None, prompt_ids=None) -> ParsedResponse:
        return ParsedResponse(content=" ".join(str(token) for token in token_ids))

    def get_stop_token_ids(self) -> list[int]:
        return [END]


# `verifiers` makes its renderer of these two.
renderers.base.load_tokenizer = lambda model: None
renderers.create_renderer = lambda tokenizer, config, **options: Renderer()


async def converse(target: Target, turns: int) -> Answer:
    """Has a conversation; from the second turn on, rows are asked from the first new token on."""
    client = TrainClient(TrainClientConfig(base_url=f"{target.url}/v1", api_key_var="NO_KEY"))
    trace = Trace.model_construct(verifiers=None, nodes=[], calls=[], tools=[])
    messages: list = []
    sampling = SamplingConfig(max_tokens=12, temperature=0.0)
    try:
        for text in ASKS[:turns]:
            messages.append(UserMessage(content=text))
            turn = prepare_turn(trace, messages)
            body = {"model": asked.MODEL}
            response = await client.get_response(ChatDialect(), body, sampling, turn=turn)
            turn.commit(response)
            messages.append(response.message)
    finally:
        await client.close()
    (branch,) = trace.branches
    rows = branch.routed_experts
    # No engine forwards the last token; verifiers repeats the row before.
    return Answer([None if rows is None else rows[:-1]], branch.token_ids)


CASES = {
    "object": [
        Case("one turn", lambda target: converse(target, 1), golden.conversation),
        Case("two turns", lambda target: converse(target, 2), golden.conversation),
    ],
}
