"""The gateway, through OpenAI's own client.

FIRN_HTTP is the gateway's address, FIRN_PID the process that answers; `run` sets them.
"""

import asyncio
import json
import os
import resource
import time
from collections import Counter
from pathlib import Path

import openai
import pytest

# Seconds that a call, a job, and what follows from one may take.
CALL = 60
JOB = 150
SETTLE = 20
# Requests at once, seconds for all of them, and what they may take in memory, in KiB.
CROWD, CROWD_TIME, CROWD_MEMORY = 10_000, 150, 512 << 10
PROMPT = "Once upon a time"
QUESTION = [{"role": "user", "content": "Which city?"}]
ROOT = f"http://{os.environ['FIRN_HTTP']}"


@pytest.fixture(scope="module")
def client():
    # Without retries: what fails once is to be seen.
    with openai.OpenAI(base_url=f"{ROOT}/v1", api_key="none", max_retries=0, timeout=CALL) as client:
        yield client


def chat(client, **wishes):
    wishes = {"model": "base", "messages": QUESTION, "temperature": 0, "max_tokens": 40} | wishes
    return client.chat.completions.create(**wishes)


def complete(client, **wishes):
    wishes = {"model": "base", "prompt": PROMPT, "temperature": 0, "max_tokens": 30} | wishes
    return client.completions.create(**wishes)


def said(answer):
    """The text of the only choice."""
    assert len(answer.choices) == 1, answer
    choice = answer.choices[0]
    return choice.message.content if hasattr(choice, "message") else choice.text


def tokenize(client, **of):
    return client.post(f"{ROOT}/tokenize", cast_to=object, body=of)


def token_id(client, text):
    """The id of a text that is one token."""
    read = tokenize(client, prompt=text)
    assert read["count"] == 1, f"{text!r} is not one token: {read}"
    return read["tokens"][0]


def refused(kind, call, param=None, code=None, word=""):
    """Makes a call that must fail so."""
    with pytest.raises(openai.APIStatusError) as caught:
        pytest.fail(f"not refused: {call()}")
    error = caught.value
    shown = f"{type(error).__name__} {error.status_code}: {error.body}"
    assert type(error) is kind, shown
    assert (error.param, error.code) == (param, code), shown
    assert error.type == "invalid_request_error", shown
    assert word in error.message, shown


def eventually(what, holds, seconds=SETTLE):
    """Waits until `holds` gives something, and gives that."""
    end = time.monotonic() + seconds
    while True:
        found = holds()
        if found:
            return found
        assert time.monotonic() < end, f"not within {seconds} s: {what()}"
        time.sleep(0.2)


# Answers


def test_a_chat_is_answered(client):
    answer = chat(client)
    choice = answer.choices[0]
    assert (answer.object, answer.model) == ("chat.completion", "base"), answer
    assert answer.id.startswith("chatcmpl-") and abs(answer.created - time.time()) < 3600, answer
    assert (choice.index, choice.message.role, choice.finish_reason) == (0, "assistant", "stop"), answer
    assert choice.message.content and choice.logprobs is None, answer
    usage, read = answer.usage, tokenize(client, messages=QUESTION)
    assert usage.prompt_tokens == read["count"], f"{usage} {read}"
    assert 0 < usage.completion_tokens <= 40, usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, usage
    parts = [{"role": "user", "content": [{"type": "text", "text": QUESTION[0]["content"]}]}]
    assert said(chat(client, messages=parts)) == choice.message.content
    assert said(chat(client, max_tokens=None, max_completion_tokens=1)) != choice.message.content


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_streamed_chat_joins_to_the_whole_one(client, temperature):
    wishes = {"temperature": temperature, "seed": 5}
    whole = chat(client, **wishes)
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}, **wishes))
    body, last = chunks[:-1], chunks[-1]
    assert all(len(chunk.choices) == 1 for chunk in body), body
    assert {(chunk.id, chunk.object, chunk.model) for chunk in chunks} == {
        (chunks[0].id, "chat.completion.chunk", "base")
    }
    assert body[0].choices[0].delta.role == "assistant", body[0]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in body)
    assert text == said(whole), f"{text!r} in chunks, {said(whole)!r} whole"
    reasons = [chunk.choices[0].finish_reason for chunk in body]
    assert reasons == [None] * (len(body) - 1) + [whole.choices[0].finish_reason], reasons
    assert all(chunk.usage is None for chunk in body), body
    assert last.choices == [], last
    counts = (last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.total_tokens)
    expected = (whole.usage.prompt_tokens, whole.usage.completion_tokens, whole.usage.total_tokens)
    assert counts == expected, f"{last.usage} {whole.usage}"
    bare = list(chat(client, stream=True, **wishes))
    assert all(chunk.usage is None for chunk in bare) and len(bare[-1].choices) == 1, "nobody asked for usage"


def test_a_streamed_completion_joins_to_the_whole_one(client):
    wishes = {"temperature": 0.8, "seed": 6, "max_tokens": 40}
    whole = complete(client, **wishes)
    chunks = list(complete(client, stream=True, stream_options={"include_usage": True}, **wishes))
    assert len(chunks) > 3, f"all came at once: {chunks}"
    text = "".join(chunk.choices[0].text for chunk in chunks[:-1])
    assert text == said(whole), f"{text!r} in chunks, {said(whole)!r} whole"
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens, chunks[-1]


def test_text_and_token_ids_are_completed_alike(client):
    by_text = complete(client)
    read = tokenize(client, prompt=PROMPT)
    assert by_text.object == "text_completion" and by_text.choices[0].finish_reason == "length", by_text
    assert by_text.usage.prompt_tokens == read["count"] and by_text.usage.completion_tokens == 30, by_text.usage
    for prompt in (read["tokens"], [PROMPT], [read["tokens"]]):
        found = said(complete(client, prompt=prompt))
        assert found == said(by_text), f"{found!r} after {prompt}, {said(by_text)!r} after the text"


def test_a_chat_s_log_probabilities(client):
    answer = chat(client, temperature=1, seed=2, logprobs=True, top_logprobs=4)
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == answer.usage.completion_tokens, f"{len(tokens)} tokens, {answer.usage}"
    for token in tokens:
        assert token.token == bytes(token.bytes).decode(errors="replace"), token
        top = [candidate.logprob for candidate in token.top_logprobs]
        assert len(top) == 4 and top == sorted(top, reverse=True), token
        assert token.logprob <= top[0] <= 0, token
        same = [candidate.logprob for candidate in token.top_logprobs if candidate.bytes == token.bytes]
        assert same == [token.logprob] * len(same), token
    joined = b"".join(bytes(token.bytes) for token in tokens)
    assert joined == said(answer).encode(), f"{joined} are the tokens, {said(answer)!r} is the text"
    bare = chat(client, temperature=1, seed=2, logprobs=True).choices[0].logprobs.content
    assert [token.logprob for token in bare] == pytest.approx([token.logprob for token in tokens], abs=1e-4)
    assert all(token.top_logprobs == [] for token in bare), bare
    streamed = chat(client, temperature=1, seed=2, logprobs=True, top_logprobs=4, stream=True)
    parts = [chunk.choices[0].logprobs for chunk in streamed]
    found = [token.token for part in parts if part for token in part.content]
    assert found == [token.token for token in tokens], found


def test_a_completion_s_log_probabilities(client):
    answer = complete(client, logprobs=3)
    shown = answer.choices[0].logprobs
    lists = (shown.tokens, shown.token_logprobs, shown.top_logprobs, shown.text_offset)
    assert [len(items) for items in lists] == [30] * 4, shown
    assert "".join(shown.tokens) == said(answer), f"{shown.tokens} {said(answer)!r}"
    offsets = [sum(map(len, shown.tokens[:place])) for place in range(30)]
    assert shown.text_offset == offsets, f"{shown.text_offset}, but {offsets} by the tokens' lengths"
    for token, logprob, top in zip(*lists[:3]):
        assert len(top) == 3 and list(top.values()) == sorted(top.values(), reverse=True), top
        assert top[token] == logprob == max(top.values()), f"{token!r} is greedy's choice from {top}"


def test_many_answers_are_those_of_the_seeds_that_follow(client):
    answer = chat(client, n=3, seed=11, temperature=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2], answer
    alone = [chat(client, seed=11 + index, temperature=1) for index in range(3)]
    texts = [choice.message.content for choice in answer.choices]
    assert texts == [said(one) for one in alone], f"{texts} together, {[said(one) for one in alone]} alone"
    assert answer.usage.completion_tokens == sum(one.usage.completion_tokens for one in alone), answer.usage
    assert answer.usage.prompt_tokens == alone[0].usage.prompt_tokens, answer.usage
    together = complete(client, n=2, seed=20, temperature=1)
    texts = [choice.text for choice in together.choices]
    assert texts == [said(complete(client, seed=seed, temperature=1)) for seed in (20, 21)], texts
    streamed = {}
    for chunk in chat(client, n=3, seed=11, temperature=1, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] = streamed.get(choice.index, "") + (choice.delta.content or "")
    assert [streamed[index] for index in range(3)] == [choice.message.content for choice in answer.choices]


def test_a_stop_ends_the_answer_before_it(client):
    whole = said(complete(client))
    stop = whole[len(whole) // 2 : len(whole) // 2 + 4]
    expected = whole[: whole.find(stop)]
    for given in (stop, ["never said", stop]):
        answer = complete(client, stop=given)
        assert said(answer) == expected, f"{said(answer)!r}, which {stop!r} ends in {whole!r}"
        assert answer.choices[0].finish_reason == "stop", answer
    streamed = "".join(chunk.choices[0].text for chunk in complete(client, stop=stop, stream=True))
    assert streamed == expected, f"{streamed!r} in chunks"
    refused(openai.BadRequestError, lambda: complete(client, stop=list("abcde")), param="stop")


def test_a_seed_gives_its_answer_again(client):
    def draw(seed):
        return said(complete(client, temperature=1, seed=seed))

    first = draw(7)
    assert draw(7) == first
    assert draw(8) != first, f"both seeds give {first!r}"
    texts = {said(chat(client, temperature=1, seed=seed)) for seed in range(6)}
    assert len(texts) > 1, f"all seeds give {texts}"
    drawn = complete(client, temperature=1)
    seed = drawn.model_extra["firn"]["seed"]
    assert draw(seed) == said(drawn), "the seed that was drawn is not the one that is told"


def test_a_bias_bans_and_forces_a_token(client):
    plain = complete(client, logprobs=0)
    banned = plain.choices[0].logprobs.tokens[0]
    answer = complete(client, logprobs=0, logit_bias={str(token_id(client, banned)): -100})
    tokens = answer.choices[0].logprobs.tokens
    assert banned not in tokens, f"{banned!r} is banned, but is among {tokens}"
    assert said(answer) != said(plain)
    forced = " garden"
    bias = {str(token_id(client, forced)): 100}
    for wishes in ({"temperature": 0}, {"temperature": 1, "seed": 4}):
        answer = complete(client, logit_bias=bias, max_tokens=5, **wishes)
        assert said(answer) == forced * 5, f"{said(answer)!r} with {wishes}"
    refused(openai.BadRequestError, lambda: complete(client, logit_bias={"7": 101}), param="logit_bias")


@pytest.mark.parametrize("frequency, presence", [(2, 0), (0, 2), (1.5, -0.5)])
def test_penalties_are_taken_from_what_was_said(client, frequency, presence):
    answer = complete(client, max_tokens=60, logprobs=5, frequency_penalty=frequency, presence_penalty=presence)
    shown, counts, moved = answer.choices[0].logprobs, {}, 0

    def adjusted(token, logprob):
        count = counts.get(token, 0)
        return logprob - frequency * count - (presence if count else 0)

    # Log-probabilities are told as they were before: what was chosen must be the best after.
    for place, (token, logprob, top) in enumerate(zip(shown.tokens, shown.token_logprobs, shown.top_logprobs)):
        mine = adjusted(token, logprob)
        for other, of in top.items():
            theirs = adjusted(other, of)
            assert mine >= theirs - 1e-3, f"token {place}: {token!r} with {mine}, and {other!r} has {theirs}"
        moved += logprob < max(top.values()) - 1e-3
        counts[token] = counts.get(token, 0) + 1
    assert moved, f"no penalty changed anything in {said(answer)!r}"
    out = {"frequency_penalty": 2.5}
    refused(openai.BadRequestError, lambda: complete(client, **out), param="frequency_penalty")


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 16},
        "kind": {"enum": ["code", "card"]},
        "amounts": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
        "place": {
            "type": "object",
            "properties": {"open": {"type": "boolean"}},
            "required": ["open"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "kind", "amounts", "place"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_schema_is_kept_to(client, seed):
    schema = {"name": "offer", "strict": True, "schema": SCHEMA}
    wishes = {"temperature": 1, "seed": seed, "max_tokens": 200}
    answer = chat(client, response_format={"type": "json_schema", "json_schema": schema}, **wishes)
    assert answer.choices[0].finish_reason == "stop", answer
    found = json.loads(said(answer))
    assert set(found) == {"name", "kind", "amounts", "place"}, found
    assert isinstance(found["name"], str) and len(found["name"]) <= 16, found
    assert found["kind"] in ("code", "card"), found
    assert isinstance(found["amounts"], list) and len(found["amounts"]) <= 3, found
    assert all(type(amount) is int and 0 <= amount <= 99 for amount in found["amounts"]), found
    assert set(found["place"]) == {"open"} and type(found["place"]["open"]) is bool, found


def test_a_schema_that_is_none_is_refused(client):
    wrong = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 7}}}
    refused(openai.BadRequestError, lambda: chat(client, response_format=wrong), param="response_format")


# Models and errors


def test_models_are_listed_and_found(client):
    models = list(client.models.list())
    assert models and models[0].id == "base", models
    assert all((model.object, model.owned_by) == ("model", "firn") for model in models), models
    base = client.models.retrieve("base")
    assert base == models[0], f"{base} alone, {models[0]} in the list"
    assert base.model_extra["max_model_len"] == tokenize(client, prompt="x")["max_model_len"], base
    missing = openai.NotFoundError
    refused(missing, lambda: client.models.retrieve("nobody"), param="model", code="model_not_found", word="nobody")


def test_what_is_wrong_is_named(client):
    wrong, missing = openai.BadRequestError, openai.NotFoundError
    for ask in (chat, complete):
        unknown = {"param": "model", "code": "model_not_found", "word": "nobody"}
        refused(missing, lambda: ask(client, model="nobody"), **unknown)
        refused(missing, lambda: ask(client, model="nobody", stream=True), **unknown)
        for name, value in [("temperature", -1), ("top_p", 0), ("max_tokens", 0), ("presence_penalty", 3), ("n", 9)]:
            refused(wrong, lambda: ask(client, **{name: value}), param=name)
        refused(wrong, lambda: ask(client, temperature="warm"), param="temperature")
        refused(wrong, lambda: ask(client, extra_body={"tempo": 3}), param="tempo", code="unknown_parameter")
        refused(wrong, lambda: ask(client, extra_body={"top_k": -2}), param="top_k")
    refused(wrong, lambda: chat(client, messages=[]), param="messages")
    refused(wrong, lambda: chat(client, messages=[{"role": "bard", "content": "x"}]), param="messages")
    refused(wrong, lambda: chat(client, logprobs=True, top_logprobs=21), param="top_logprobs")
    refused(wrong, lambda: chat(client, top_logprobs=2), param="top_logprobs")
    refused(wrong, lambda: complete(client, logprobs=6), param="logprobs")
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    others = {"tool_choice": "required", "store": True, "service_tier": "flex"}
    for name, value in {"tools": [tool], **others}.items():
        refused(wrong, lambda: chat(client, **{name: value}), param=name, code="unsupported_parameter")
    assert said(chat(client)), "it still answers"


def test_an_id_outside_the_vocabulary_is_refused(client):
    refused(openai.BadRequestError, lambda: complete(client, prompt=[1 << 30]), param="prompt", word=str(1 << 30))


def test_what_is_longer_than_the_context_is_refused(client):
    length = tokenize(client, prompt="x")["max_model_len"]
    long = "word " * (length + 1)

    def too_long(call, param):
        refused(openai.BadRequestError, call, param, "context_length_exceeded", str(length))

    too_long(lambda: chat(client, messages=[{"role": "user", "content": long}]), "messages")
    too_long(lambda: complete(client, prompt=long), "prompt")
    too_long(lambda: complete(client, prompt=[5] * (length + 1)), "prompt")
    megabyte = "word " * 200_000
    too_long(lambda: chat(client, messages=[{"role": "user", "content": megabyte}]), "messages")
    too_long(lambda: complete(client, prompt=megabyte), "prompt")
    assert complete(client, prompt=[5] * (length - 2), max_tokens=2).usage.prompt_tokens == length - 2


async def crowd(count, wishes):
    """Sends the same so many times at once, each time through a connection of its own; status, headers and body of each."""
    host, port = os.environ["FIRN_HTTP"].split(":")
    body = json.dumps(wishes).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    request = (head + "Content-Type: application/json\r\nConnection: close\r\n\r\n").encode() + body

    async def knock():
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(request)
            return await reader.read()
        finally:
            writer.close()

    async def one():
        # The system drops callers while its queue is full and the gateway gets no processor: they knock again.
        for _ in range(4):
            try:
                answer = await knock()
                break
            except ConnectionResetError:
                pass
        else:
            answer = await knock()
        head, _, body = answer.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        return int(status.split()[1]), dict(line.lower().split(": ", 1) for line in lines), json.loads(body)

    async with asyncio.timeout(CROWD_TIME):
        return await asyncio.gather(*(one() for _ in range(count)))


def memory(name):
    """What the answering process takes, in KiB, by the kernel's name for it."""
    lines = Path(f"/proc/{os.environ['FIRN_PID']}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def test_a_crowd_is_answered_or_told_when_to_come_back(client):
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = min(most, CROWD + 500)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))
    before = memory("VmRSS")
    wishes = {"model": "base", "prompt": PROMPT, "temperature": 0, "max_tokens": 4}
    answers = asyncio.run(crowd(min(CROWD, files - 500), wishes))
    counts = Counter(status for status, _, _ in answers)
    assert set(counts) == {200, 429}, counts
    texts = {body["choices"][0]["text"] for status, _, body in answers if status == 200}
    assert texts == {said(complete(client, max_tokens=4))}, "the crowd changes no answer"
    for status, headers, body in answers:
        if status == 429:
            assert int(headers["retry-after"]) >= 1, headers
            assert (body["error"]["type"], body["error"]["code"]) == ("rate_limit_error", "rate_limit_exceeded"), body
    more = memory("VmHWM") - before
    assert more < CROWD_MEMORY, f"{counts} took {more} KiB more"


# Files and fine-tuning


def offers():
    """Chats about invented offers, a row each."""
    companies = ["Alderfinch", "Sedgedormer", "Brackenlow", "Marlspindle"]
    products = ["Rain Gauge", "Head Torch", "Desk Lamp"]
    for index in range(24):
        company, product = companies[index % 4], products[index % 3]
        reward = f"${5 + 5 * index}"
        record = json.dumps({"ORGANIZATION_NAME": company, "PRODUCT_NAME": product, "REWARD": reward})
        answer = f"Company {company} is offering a {reward} reward on {product}."
        yield [
            {"role": "user", "content": f"Describe this offer.\n{record}"},
            {"role": "assistant", "content": answer},
        ]


def as_jsonl(chats):
    return "".join(json.dumps({"messages": turns}) + "\n" for turns in chats).encode()


OFFERS = list(offers())
ASKED = OFFERS[0][:1]
# Enough passes over the offers for answers of their kind.
EPOCHS = 4


def create(client, rows, name="offers.jsonl"):
    return client.files.create(file=(name, rows), purpose="fine-tune")


def test_files_come_and_go(client):
    rows = as_jsonl(OFFERS[:3])
    before = time.time()
    file = create(client, rows)
    assert file.id.startswith("file-"), file
    found = (file.object, file.bytes, file.filename, file.purpose, file.status)
    assert found == ("file", len(rows), "offers.jsonl", "fine-tune", "processed"), file
    assert before - 5 <= file.created_at <= time.time() + 5, file
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).read() == rows
    second = create(client, b"prompt,completion\nHello,Hi\n", "second.csv")
    listed = [each.id for each in client.files.list(limit=1)]
    assert listed[:2] == [second.id, file.id], f"{listed} page by page, newest first"
    oldest = [each.id for each in client.files.list(order="asc")]
    assert oldest == listed[::-1], f"{oldest} oldest first, {listed} newest first"
    assert file.id in [each.id for each in client.files.list(purpose="fine-tune")]
    assert list(client.files.list(purpose="batch")) == []
    for each in (file, second):
        gone = client.files.delete(each.id)
        assert (gone.id, gone.object, gone.deleted) == (each.id, "file", True), gone
        with pytest.raises(openai.NotFoundError):
            pytest.fail(f"it is still there: {client.files.retrieve(each.id)}")
        with pytest.raises(openai.NotFoundError):
            pytest.fail(f"it is still there: {client.files.content(each.id).read()}")
    assert not {file.id, second.id} & {each.id for each in client.files.list()}


@pytest.mark.parametrize("name, rows", [("offers.exe", b"x"), ("", b"x"), ("offers.jsonl", b"")])
def test_wrong_files_are_refused(client, name, rows):
    with pytest.raises(openai.BadRequestError) as caught:
        pytest.fail(f"not refused: {create(client, rows, name)}")
    assert caught.value.param in ("file", "filename"), caught.value.body


def test_a_file_without_a_known_purpose_is_refused(client):
    file = ("offers.jsonl", as_jsonl(OFFERS[:1]))
    refused(openai.BadRequestError, lambda: client.files.create(file=file, purpose="fun"), param="purpose")


def test_a_file_that_is_not_there_is_not_found(client):
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            pytest.fail(f"not refused: {call('file-nobody')}")


def tune(client, file, epochs, **more):
    supervised = {"hyperparameters": {"n_epochs": epochs, "batch_size": 2, "learning_rate_multiplier": 4}}
    own = {"lora": {"r": 8}, "hyperparameters": {"block_size": 256}} | more.pop("firn", {})
    return client.fine_tuning.jobs.create(
        model="base",
        training_file=file.id,
        seed=42,
        method={"type": "supervised", "supervised": supervised},
        extra_body={"firn": own},
        **more,
    )


@pytest.fixture(scope="module")
def tuned(client):
    """A job that has succeeded."""
    file = create(client, as_jsonl(OFFERS))
    job = tune(client, file, EPOCHS, suffix="offers", firn={"held_out_rows": 4})
    assert job.object == "fine_tuning.job" and job.id.startswith("job-"), job
    assert job.status in ("validating_files", "queued", "running"), job
    assert (job.training_file, job.fine_tuned_model, job.seed) == (file.id, None, 42), job
    found = job.method.supervised.hyperparameters
    assert (found.n_epochs, found.batch_size, found.learning_rate_multiplier) == (EPOCHS, 2, 4), job

    def ended():
        now = client.fine_tuning.jobs.retrieve(job.id)
        assert now.status in ("validating_files", "queued", "running", "succeeded"), f"{now}"
        return now if now.status == "succeeded" else None

    return eventually(lambda: client.fine_tuning.jobs.retrieve(job.id), ended, JOB)


def test_a_job_succeeds_and_says_what_it_made(client, tuned):
    assert tuned.fine_tuned_model == "offers@latest", tuned
    assert tuned.trained_tokens > 0 and tuned.error is None, tuned
    assert tuned.id in [job.id for job in client.fine_tuning.jobs.list(limit=1)]
    for nobody in ("job-" + "0" * 32, "ftjob-nobody"):
        with pytest.raises(openai.NotFoundError):
            pytest.fail(f"not refused: {client.fine_tuning.jobs.retrieve(nobody)}")


def supervised(**hyperparameters):
    return {"method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}}


@pytest.mark.parametrize(
    "name, wishes",
    [
        ("n_epochs", supervised(n_epochs=0)),
        ("n_epochs", {"hyperparameters": {"n_epochs": 1_000_000}}),
        ("n_epochs", supervised(n_epochs="many")),
        ("batch_size", supervised(batch_size=0)),
        ("learning_rate_multiplier", supervised(learning_rate_multiplier=-1)),
        ("suffix", {"suffix": "No such name!"}),
        ("integrations", {"integrations": [{"type": "wandb", "wandb": {"project": "x"}}]}),
        ("firn", {"extra_body": {"firn": {"tempo": 3}}}),
        ("tempo", {"extra_body": {"tempo": 3}}),
        ("training_file", {"training_file": "file-nobody"}),
        ("training_file", {"training_file": "offers.jsonl"}),
        ("validation_file", {"validation_file": "file-nobody"}),
        ("model", {"model": "nobody"}),
        ("model", {"model": "nobody@latest"}),
    ],
)
def test_what_is_wrong_with_a_job_is_named(client, tuned, name, wishes):
    order = {"model": "base", "training_file": tuned.training_file} | wishes
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as caught:
        pytest.fail(f"not refused: {client.fine_tuning.jobs.create(**order)}")
    found = (caught.value.param or "").split(".")
    assert found[-1] == name, f"{caught.value.status_code} {caught.value.body}"


def test_a_job_s_events_tell_its_steps(client, tuned):
    events = list(client.fine_tuning.jobs.list_events(tuned.id, limit=7))
    assert len({event.id for event in events}) == len(events), "an event comes twice"
    numbers = [int(event.id.removeprefix("ftevent-")) for event in events]
    assert numbers == sorted(numbers, reverse=True), f"not newest first: {numbers}"
    assert events[0].type == "message" and "succeeded" in events[0].message, events[0]
    steps = [event.data for event in reversed(events) if event.type == "metrics"]
    total = steps[-1]["total_steps"]
    assert [step["step"] for step in steps] == list(range(1, total + 1)), steps
    assert steps[-1]["train_loss"] < 0.7 * steps[0]["train_loss"], f"it learnt nothing: {steps}"
    assert any("valid_loss" in step for step in steps), f"nothing was measured: {steps}"


def test_a_tuned_model_answers_by_its_name(client, tuned):
    name = tuned.fine_tuned_model

    def served():
        return name in [model.id for model in client.models.list()]

    eventually(lambda: client.models.list(), served)
    found, base = said(chat(client, model=name, messages=ASKED)), said(chat(client, messages=ASKED))
    assert found.startswith("Company "), f"{found!r}, and the base {base!r}"
    assert not base.startswith("Company "), base
    answer = chat(client, model=name, messages=ASKED)
    assert answer.model == name, answer
    assert answer.model_extra["firn"]["version"] == tuned.model_extra["firn"]["version"], answer


def test_a_checkpoint_answers_once_it_is_loaded(client, tuned):
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(tuned.id))
    assert checkpoints, "no checkpoints"
    steps = [checkpoint.step_number for checkpoint in checkpoints]
    assert steps == sorted(steps, reverse=True), f"not newest first: {steps}"
    last = checkpoints[0]
    assert last.fine_tuning_job_id == tuned.id and last.object == "fine_tuning.job.checkpoint", last
    assert last.step_number == tuned.model_extra["firn"]["steps"], f"{last} {tuned}"
    assert last.metrics.step == last.step_number and last.metrics.train_loss > 0, last
    name = last.fine_tuned_model_checkpoint
    assert name == f"{tuned.id}@{last.step_number}", last
    missing = openai.NotFoundError
    refused(missing, lambda: chat(client, model=name, messages=ASKED), param="model", code="model_not_found")
    text = client.post("/load_lora_adapter", cast_to=str, body={"lora_name": name})
    assert "Success" in text and name in text, text
    assert client.models.retrieve(name).model_extra["loaded"] is True
    # The last checkpoint's weights are the job's.
    found = said(chat(client, model=name, messages=ASKED))
    expected = said(chat(client, model=tuned.fine_tuned_model, messages=ASKED))
    assert found == expected, f"{found!r} by the checkpoint, {expected!r} by the version"
    client.post("/unload_lora_adapter", cast_to=str, body={"lora_name": name})
    refused(missing, lambda: chat(client, model=name, messages=ASKED), param="model", code="model_not_found")


def test_a_job_is_paused_resumed_and_cancelled(client, tuned):
    file = client.files.retrieve(tuned.training_file)
    job = tune(client, file, 900, suffix="endless")
    jobs = client.fine_tuning.jobs

    def becomes(status, *before):
        def there():
            now = jobs.retrieve(job.id)
            assert now.status in (status, *before), f"{now}"
            return now if now.status == status else None

        return eventually(lambda: jobs.retrieve(job.id), there, JOB)

    becomes("running", "validating_files", "queued")
    assert jobs.pause(job.id).id == job.id
    paused = becomes("paused", "running")
    step = paused.model_extra["firn"]["step"]
    assert jobs.resume(job.id).id == job.id
    becomes("running", "validating_files", "queued", "paused")
    eventually(lambda: jobs.retrieve(job.id), lambda: jobs.retrieve(job.id).model_extra["firn"]["step"] > step)
    told = jobs.cancel(job.id)
    assert told.id == job.id, told
    ended = becomes("cancelled", "running")
    assert ended.fine_tuned_model is None, ended
    assert "endless@latest" not in [model.id for model in client.models.list()]
    with pytest.raises(openai.APIStatusError) as caught:
        pytest.fail(f"cancelled twice: {jobs.cancel(job.id)}")
    assert 400 <= caught.value.status_code < 500, caught.value
    assert said(chat(client)), "it still answers"
