"""The official OpenAI client, once directly at an engine and once through the gate: nothing may differ.

Each case is a call of the client, made directly and through the gate. Status, headers and every byte of the body
are compared, and what the client's own types made of them; sameness.py says what two identical calls to one
engine differ in as well.

    differential.py DIRECT_URL GATE_URL [MODEL]

Exit status 0 when nothing differed.
"""

import asyncio
import json
import sys

import openai
from sameness import compare, difference, join_chunks, normal, observed

MESSAGES = [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "hello world, how are you?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
AFTER_A_TOOL = MESSAGES + [
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Paris"}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "21 degrees"},
]


def chat(**changes):
    """A chat completion's parameters; the same text each time it is asked for."""
    return {"messages": MESSAGES, "max_tokens": 16, "temperature": 0, "seed": 7, **changes}


def completion(**changes):
    return {"prompt": "import os\n", "max_tokens": 12, "temperature": 0, "seed": 7, **changes}


NAMED = {"type": "function", "function": {"name": "get_weather"}}
USAGE = {"include_usage": True}

# Name, resource of the client, parameters.
CASES = [
    ("chat", "chat.completions", chat()),
    ("chat, ended by its length", "chat.completions", chat(max_tokens=3, extra_body={"ignore_eos": True})),
    ("chat with a stop string", "chat.completions", chat(stop=["e"])),
    ("chat with log-probabilities", "chat.completions", chat(logprobs=True, top_logprobs=2)),
    ("chat, two choices", "chat.completions", chat(n=2)),
    ("chat of unicode", "chat.completions", chat(messages=[{"role": "user", "content": "d\u00e9j\u00e0 vu \U0001f600\u2028"}])),
    ("chat after a tool", "chat.completions", chat(messages=AFTER_A_TOOL, tools=[WEATHER])),
    ("chat of a long prompt", "chat.completions", chat(messages=[{"role": "user", "content": "word " * 900}])),
    ("chat with an unknown field", "chat.completions", chat(extra_body={"nobody_knows": {"a": [1, 2.50, None]}})),
    ("chat stream", "chat.completions", chat(stream=True)),
    ("chat stream with usage", "chat.completions", chat(stream=True, stream_options=USAGE)),
    (
        "chat stream with continuous usage",
        "chat.completions",
        chat(stream=True, stream_options={**USAGE, "continuous_usage_stats": True}),
    ),
    ("chat stream, usage declined", "chat.completions", chat(stream=True, stream_options={"include_usage": False})),
    ("chat stream, two choices", "chat.completions", chat(stream=True, n=2)),
    ("chat stream of many tokens", "chat.completions", chat(stream=True, max_tokens=200, extra_body={"ignore_eos": True})),
    ("tools, required", "chat.completions", chat(tools=[WEATHER], tool_choice="required", max_tokens=100)),
    ("tools, named", "chat.completions", chat(tools=[WEATHER], tool_choice=NAMED, max_tokens=100)),
    ("tools, auto", "chat.completions", chat(tools=[WEATHER], tool_choice="auto")),
    ("tools stream, required", "chat.completions", chat(tools=[WEATHER], tool_choice="required", max_tokens=100, stream=True)),
    ("tools stream, named", "chat.completions", chat(tools=[WEATHER], tool_choice=NAMED, max_tokens=100, stream=True)),
    ("tools stream, auto", "chat.completions", chat(tools=[WEATHER], tool_choice="auto", stream=True)),
    ("completion", "completions", completion()),
    ("completion of two prompts", "completions", completion(prompt=["import os", "import sys"])),
    ("completion of token ids", "completions", completion(prompt=list(range(300, 340)))),
    ("completion stream", "completions", completion(stream=True)),
    ("completion stream with usage", "completions", completion(stream=True, stream_options=USAGE)),
    ("program in the body", "chat.completions", chat(extra_body={"job_id": "tau2:retail:0:46fbbefc", "is_last_step": False})),
    ("program's last step", "chat.completions", chat(extra_body={"program_id": "p", "is_last_step": True})),
    ("program in a header", "chat.completions", chat(stream=True, extra_headers={"X-Session-ID": "s"})),
    ("program of an agentic context", "chat.completions", chat(extra_body={"vllm_xargs": {"agentic_context": '{"program_id":"q"}'}})),
    ("no such model", "chat.completions", chat(model="nope")),
    ("no such model, stream", "chat.completions", chat(model="nope", stream=True)),
    ("no messages", "chat.completions", chat(messages=[])),
    ("messages of a wrong type", "chat.completions", chat(messages="hello")),
    ("negative max_tokens", "chat.completions", chat(max_tokens=-1)),
    ("max_tokens of a wrong type", "chat.completions", chat(max_tokens="many")),
    ("max_tokens past the context", "chat.completions", chat(max_tokens=10_000_000)),
    ("temperature out of range", "chat.completions", chat(temperature=-1)),
    ("prompt past the context", "chat.completions", chat(messages=[{"role": "user", "content": "word " * 60_000}])),
    ("prompt past the context, stream", "chat.completions", chat(messages=[{"role": "user", "content": "word " * 60_000}], stream=True)),
    ("stream options without a stream", "chat.completions", chat(stream_options=USAGE)),
    ("tool choice without tools", "chat.completions", chat(tool_choice="required")),
    ("completion without such a model", "completions", completion(model="nope")),
    ("embeddings", "embeddings", {"input": "hello"}),
    ("response", "responses", {"input": "hi", "max_output_tokens": 4, "temperature": 0}),
    ("response stream", "responses", {"input": "hi", "max_output_tokens": 4, "temperature": 0, "stream": True}),
]


def client_for(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="sk-none", max_retries=0, timeout=120)


def resource_of(client, path):
    for name in path.split("."):
        client = getattr(client, name)
    return client


def raw(client, path, parameters):
    """The bytes of a response, as the client's transport saw them."""
    resource = resource_of(client, path).with_streaming_response
    try:
        with resource.create(**parameters) as response:
            return observed(response.status_code, response.headers.items(), b"".join(response.iter_bytes()))
    except openai.APIStatusError as error:
        return observed(error.response.status_code, error.response.headers.items(), error.response.content)


def typed(client, path, parameters):
    """What the client's types make of it: an object, a list of chunks, or an exception."""
    try:
        result = resource_of(client, path).create(**parameters)
        if parameters.get("stream"):
            made = [event.model_dump() for event in result]
        else:
            made = result.model_dump()
    except openai.APIStatusError as error:
        made = {
            "exception": type(error).__name__,
            "message": str(error),
            "code": error.code,
            "param": error.param,
            "type": error.type,
        }
    except openai.APIError as error:
        made = {"exception": type(error).__name__, "message": str(error)}
    made = json.loads(normal(json.dumps(made, sort_keys=True, separators=(",", ":")).encode()))
    return join_chunks(made) if isinstance(made, list) else made


def compare_call(direct, gate, path, parameters, loose):
    """The first difference between calling directly and through the gate, by bytes, then by types."""
    by_bytes = compare(
        lambda: raw(direct, path, parameters),
        lambda: raw(gate, path, parameters),
        bool(parameters.get("stream")),
        loose,
    )
    return by_bytes or difference(typed(direct, path, parameters), typed(gate, path, parameters))


async def many_at_once(url, model, count):
    """`count` streams at once, each a program of its own; their texts."""

    async def one(client, n):
        stream = await client.chat.completions.create(
            model=model, **chat(stream=True, max_tokens=40, messages=[{"role": "user", "content": f"count to {n}"}]),
            extra_body={"job_id": f"many:{n}", "ignore_eos": True},
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-none", max_retries=0, timeout=120) as client:
        return await asyncio.gather(*(one(client, n) for n in range(count)))


def compare_models(direct, gate):
    lists = [[model.model_dump() for model in client.models.list().data] for client in (direct, gate)]
    for models in lists:
        for model in models:
            model.pop("created", None)
            for permission in model.get("permission") or []:
                permission.pop("created", None)
                permission.pop("id", None)
    return difference({"models": lists[0]}, {"models": lists[1]})


def main():
    direct_url, gate_url = sys.argv[1].rstrip("/"), sys.argv[2].rstrip("/")
    direct, gate = client_for(direct_url), client_for(gate_url)
    model = sys.argv[3] if len(sys.argv) > 3 else direct.models.list().data[0].id
    loose = []
    results = [("models", compare_models(direct, gate))]
    for name, path, parameters in CASES:
        parameters = {"model": model, **parameters}
        try:
            results.append((name, compare_call(direct, gate, path, parameters, loose)))
        except Exception as error:  # A case that cannot be compared failed; the others go on.
            results.append((name, f"{type(error).__name__}: {error}"))
    texts = [asyncio.run(many_at_once(url, model, 24)) for url in (direct_url, gate_url)]
    results.append(("24 streams at once", difference({"texts": texts[0]}, {"texts": texts[1]})))

    failed = [(name, wrong) for name, wrong in results if wrong]
    for name, wrong in failed:
        print(f"FAILED {name}\n      {wrong[:2000]}")
    streams = sum(bool(parameters.get("stream")) for _, _, parameters in CASES)
    print(f"openai {openai.__version__}: {streams - len(loose)} of {streams} streams equal byte for byte, the others but for their chunking")
    print(f"{len(results) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
