"""The requests that the clients send. `MODEL` is the simulated engines' only one."""

MODEL = "tiny"
PROMPT = "The experts of a token are chosen by the router of each layer. " * 6
TOKENS = [3 + (i * 37) % 250 for i in range(280)]
MESSAGES = [
    {"role": "system", "content": "You count experts."},
    {"role": "user", "content": "How many experts does this token have? " * 4},
]

COMPLETION = {"model": MODEL, "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
SAMPLED = {**COMPLETION, "temperature": 1, "n": 2}
CHAT = {"model": MODEL, "messages": MESSAGES, "max_completion_tokens": 12, "temperature": 0}
GENERATE = {
    "model": MODEL,
    "token_ids": TOKENS,
    "sampling_params": {"max_tokens": 12, "temperature": 0},
}

# SGLang returns routing only where it is asked for.
WANTED = {"return_routed_experts": True}
SGLANG_COMPLETION = {**COMPLETION, **WANTED}
SGLANG_CHAT = {**CHAT, **WANTED}
SGLANG_GENERATE = {
    "input_ids": TOKENS,
    "sampling_params": {"max_new_tokens": 12, "temperature": 0},
    **WANTED,
}

COMPLETIONS = "/v1/completions"
CHATS = "/v1/chat/completions"
VLLM_GENERATE = "/inference/v1/generate"
NATIVE = "/generate"
