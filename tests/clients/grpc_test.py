"""Inference over gRPC, through the client that gRPC's own tools make of the protocol.

FIRN_INFERENCE is the address; `run` sets it, and puts the generated code on the path.
"""

import json
import os
import time

import grpc
import pytest
from firn.inference.v1 import inference_service_pb2 as pb
from firn.inference.v1 import inference_service_pb2_grpc as services
from inference import open_inference_pb2 as v2
from inference import open_inference_pb2_grpc as open_services

# Seconds that a call may take, and that a number may need to be right.
CALL = 60
SETTLE = 20
PROMPT = "Once upon a time"
QUESTION = [pb.ChatMessage(role="user", content="Which city?")]
# How far two ways to compute a log-probability may be apart, nats.
CLOSE = 2e-4


@pytest.fixture(scope="module")
def channel():
    with grpc.insecure_channel(os.environ["FIRN_INFERENCE"]) as channel:
        grpc.channel_ready_future(channel).result(timeout=CALL)
        yield channel


@pytest.fixture(scope="module")
def inference(channel):
    return services.InferenceServiceStub(channel)


@pytest.fixture(scope="module")
def open_inference(channel):
    return open_services.GRPCInferenceServiceStub(channel)


def greedy(tokens, **more):
    return pb.Sampling(temperature=0, max_tokens=tokens, **more)


class Answer:
    """A stream, read to its end."""

    def __init__(self, stream):
        self.pieces, self.finish = [], None
        for response in stream:
            assert self.finish is None, f"{response} comes after the end"
            kind = response.WhichOneof("event")
            assert kind in ("delta", "finish"), f"a piece is neither text nor the end: {response}"
            if kind == "delta":
                self.pieces.append(response.delta)
            else:
                self.finish = response.finish
        assert self.finish is not None, "the stream ended without saying so"
        self.text = "".join(piece.text for piece in self.pieces)
        self.ids = [token for piece in self.pieces for token in piece.ids]
        self.logprobs = [logprob for piece in self.pieces for logprob in piece.logprobs]
        self.details = [detail for piece in self.pieces for detail in piece.details]


def generate(inference, prompt, sampling, model=""):
    request = pb.GenerateRequest(model=model, sampling=sampling)
    if isinstance(prompt, str):
        request.prompt = prompt
    else:
        request.ids.ids.extend(prompt)
    return Answer(inference.Generate(request, timeout=CALL))


def refused(code, call, *words):
    """Makes a call that must fail, with these words in its message."""
    with pytest.raises(grpc.RpcError) as caught:
        result = call()
        if hasattr(result, "__iter__"):
            result = list(result)
        pytest.fail(f"not refused: {result}")
    error = caught.value
    assert error.code() == code, f"{error.code()}: {error.details()}"
    for word in words:
        assert word in error.details(), f"no {word!r} in {error.details()!r}"


def eventually(what, holds, seconds=SETTLE):
    """Waits until `holds` gives something, and gives that."""
    end = time.monotonic() + seconds
    while True:
        found = holds()
        if found:
            return found
        assert time.monotonic() < end, f"not within {seconds} s: {what()}"
        time.sleep(0.05)


def stats(inference):
    return inference.GetStats(pb.GetStatsRequest(), timeout=CALL)


# The house's own protocol


def test_generate_streams_text_and_says_how_it_ended(inference):
    answer = generate(inference, PROMPT, greedy(24))
    assert len(answer.pieces) > 1, f"all came at once: {answer.pieces}"
    finish = answer.finish
    assert (finish.completion_tokens, len(answer.ids)) == (24, 24), f"{finish} {answer.ids}"
    assert finish.reason == pb.FINISH_REASON_LENGTH, finish
    assert 0 < finish.first_token_seconds <= finish.seconds, finish
    assert finish.version == "", finish
    shown = inference.Tokenize(pb.TokenizeRequest(ids=pb.TokenIds(ids=answer.ids)), timeout=CALL)
    assert shown.text == answer.text, f"{shown.text!r} of the ids, {answer.text!r} of the stream"
    assert not answer.logprobs and not answer.details, "nobody asked for log-probabilities"
    named = generate(inference, PROMPT, greedy(24), model="base")
    assert named.ids == answer.ids, f"base says {named.ids}, no name {answer.ids}"


def test_a_prompt_s_ids_are_answered_as_its_text(inference):
    read = inference.Tokenize(pb.TokenizeRequest(text=PROMPT), timeout=CALL)
    by_text, by_ids = generate(inference, PROMPT, greedy(12)), generate(inference, read.ids, greedy(12))
    assert by_ids.ids == by_text.ids, f"{by_ids.text!r} after ids, {by_text.text!r} after text"
    assert by_text.finish.prompt_tokens == by_ids.finish.prompt_tokens == len(read.ids)


def test_a_seed_gives_its_answer_again(inference):
    def draw(**seed):
        return generate(inference, PROMPT, pb.Sampling(temperature=1, max_tokens=20, ignore_eos=True, **seed))

    first = draw(seed=7)
    assert (first.finish.seed, draw(seed=7).ids) == (7, first.ids)
    assert draw(seed=8).ids != first.ids, f"both seeds give {first.text!r}"
    drawn = draw()
    assert draw(seed=drawn.finish.seed).ids == drawn.ids, "the seed that was drawn is not the one that is told"


def test_a_chat_is_generated_after_its_template(inference):
    request = pb.ChatRequest(messages=QUESTION, sampling=greedy(40))
    chat = Answer(inference.Chat(request, timeout=CALL))
    turns = pb.Turns(messages=QUESTION, add_generation_prompt=True)
    read = inference.Tokenize(pb.TokenizeRequest(chat=turns), timeout=CALL)
    by_ids = generate(inference, read.ids, greedy(40))
    assert chat.text and chat.text == by_ids.text, f"{chat.text!r} {by_ids.text!r}"
    assert chat.finish.prompt_tokens == len(read.ids)
    assert chat.finish.reason == pb.FINISH_REASON_STOP, chat.finish


def test_log_probabilities_are_those_of_the_score(inference):
    prompt = inference.Tokenize(pb.TokenizeRequest(text=PROMPT), timeout=CALL).ids
    answer = generate(inference, prompt, greedy(32, logprobs=True, top_logprobs=3))
    assert len(answer.logprobs) == len(answer.details) == len(answer.ids) == 32
    for token, logprob, detail in zip(answer.ids, answer.logprobs, answer.details):
        assert (detail.chosen.id, detail.chosen.logprob) == (token, logprob), detail
        top = [candidate.logprob for candidate in detail.top]
        assert len(top) == 3 and top == sorted(top, reverse=True), detail
        assert detail.top[0].id == token, f"greedy, but not the most probable token: {detail}"
    said = b"".join(detail.chosen.token for detail in answer.details)
    assert said == answer.text.encode(), f"{said} are the tokens, {answer.text!r} is the text"

    whole = list(prompt) + answer.ids
    scores = inference.Score(pb.ScoreRequest(ids=pb.TokenIds(ids=whole)), timeout=CALL)
    assert list(scores.ids) == whole
    assert len(scores.logprobs) == len(whole) - 1
    for place, (scored, found) in enumerate(zip(scores.logprobs[len(prompt) - 1 :], answer.logprobs)):
        assert abs(scored - found) <= CLOSE, f"token {place}: {scored} by Score, {found} by Generate"
    assert abs(scores.sum - sum(scores.logprobs)) < 1e-6, f"{scores.sum} is not the sum {sum(scores.logprobs)}"
    assert all(logprob <= 0 for logprob in scores.logprobs), scores.logprobs


def test_a_text_scores_as_its_ids(inference):
    text = "The garden was quiet."
    by_text = inference.Score(pb.ScoreRequest(text=text), timeout=CALL)
    read = inference.Tokenize(pb.TokenizeRequest(text=text), timeout=CALL)
    by_ids = inference.Score(pb.ScoreRequest(ids=read_ids(read)), timeout=CALL)
    assert list(by_text.ids) == list(read.ids)
    assert by_text.sum == pytest.approx(by_ids.sum, abs=CLOSE), f"{by_text.sum} {by_ids.sum}"


def read_ids(read):
    return pb.TokenIds(ids=read.ids)


def test_text_becomes_tokens_and_text_again(inference):
    text = "naïve café – 東京 🚀 end"
    read = inference.Tokenize(pb.TokenizeRequest(text=text), timeout=CALL)
    assert b"".join(read.tokens) == text.encode(), read.tokens
    assert len(read.tokens) == len(read.ids)
    back = inference.Tokenize(pb.TokenizeRequest(ids=read_ids(read)), timeout=CALL)
    assert (back.text, list(back.ids)) == (text, list(read.ids))
    assert read.context_length == back.context_length > 0
    assert len(read.template_sha256) == 64, read.template_sha256


def test_a_chat_s_tokens_are_its_template_s(inference):
    def read(begin):
        turns = pb.Turns(messages=QUESTION, add_generation_prompt=begin)
        return inference.Tokenize(pb.TokenizeRequest(chat=turns), timeout=CALL)

    asked, told = read(True), read(False)
    assert QUESTION[0].content in told.text, told.text
    assert asked.text.startswith(told.text), f"{asked.text!r} does not go on from {told.text!r}"
    assert len(asked.ids) > len(told.ids) and list(asked.ids)[: len(told.ids)] == list(told.ids)


def test_the_base_is_the_first_model(inference):
    models = inference.ListModels(pb.ListModelsRequest(), timeout=CALL).models
    read = inference.Tokenize(pb.TokenizeRequest(text="x"), timeout=CALL)
    assert models, "no models"
    base = models[0]
    assert (base.id, base.version, base.parent, base.loaded) == ("base", "", "", False), base
    assert base.context_length == read.context_length, f"{base} {read.context_length}"


def test_stats_count_what_was_done(inference):
    before = eventually(lambda: stats(inference), lambda: settled(inference))
    answer = generate(inference, PROMPT, greedy(10))

    def grown():
        now = stats(inference)
        ended = now.ended_total["length"] - before.ended_total["length"]
        return now if (now.running, ended) == (0, 1) else None

    now = eventually(lambda: f"{stats(inference)}, before {before}", grown)
    prompt = now.prompt_tokens_total - before.prompt_tokens_total
    told = now.answer_tokens_total - before.answer_tokens_total
    assert prompt == answer.finish.prompt_tokens, f"{prompt} counted, {answer.finish}"
    assert told == 10, f"{told} counted, {answer.finish}"
    # A prompt is read in one step or more, and each further token takes one.
    assert now.steps_total - before.steps_total >= 10, f"{before} {now}"
    assert now.max_running > 0 and now.max_waiting > 0 and now.page_tokens > 0, now
    assert 0 < now.cache_pages <= now.max_cache_pages, now
    assert now.idle_pages <= now.cache_pages, now


def settled(inference):
    now = stats(inference)
    return now if now.running == now.waiting == 0 else None


def test_a_prompt_that_was_read_is_not_read_again(inference):
    # Unlike what others ask from the first word on, and of many pages.
    prompt = "Seventeen lamps. " + " ".join(f"Lamp {number} stands at place {number * 7 % 97}." for number in range(40))
    before = eventually(lambda: stats(inference), lambda: settled(inference))
    first = generate(inference, prompt, greedy(8))
    between = eventually(lambda: stats(inference), lambda: settled(inference))
    second = generate(inference, prompt, greedy(8))
    after = eventually(lambda: stats(inference), lambda: settled(inference))
    tokens, page = first.finish.prompt_tokens, after.page_tokens
    assert tokens > 4 * page, f"{tokens} tokens are too few to tell"
    assert first.finish.cached_tokens == 0, first.finish
    cached = second.finish.cached_tokens
    assert tokens - 2 * page < cached < tokens, f"{cached} of {tokens} were there, pages have {page}"
    assert second.ids == first.ids, f"{second.text!r} from the cache, {first.text!r} without"
    hits = [between.prefix_hits_total - before.prefix_hits_total, after.prefix_hits_total - between.prefix_hits_total]
    assert hits == [0, cached], hits
    assert after.prefix_queries_total >= between.prefix_queries_total + cached, f"{between} {after}"


def test_wrong_requests_are_refused_by_name(inference):
    def ask(**request):
        return lambda: inference.Generate(pb.GenerateRequest(**request), timeout=CALL)

    wrong, missing = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
    refused(missing, ask(model="nobody", prompt="x"), "nobody")
    refused(wrong, ask(prompt="x", sampling=pb.Sampling(temperature=-1)), "temperature")
    refused(wrong, ask(prompt="x", sampling=pb.Sampling(top_p=0)), "top_p")
    refused(wrong, ask(prompt="x", sampling=pb.Sampling(max_tokens=0)), "max_tokens")
    refused(wrong, ask(prompt="x", sampling=pb.Sampling(json_schema='{"type": 7}')), "json_schema")
    refused(wrong, ask(ids=pb.TokenIds(ids=[1 << 30])), "ids")
    refused(wrong, ask(prompt="word " * 200_000), "more than the context")
    refused(wrong, ask(), "input")
    refused(wrong, lambda: inference.Chat(pb.ChatRequest(), timeout=CALL), "messages")
    refused(wrong, lambda: inference.Score(pb.ScoreRequest(), timeout=CALL), "input")
    refused(wrong, lambda: inference.LoadModel(pb.LoadModelRequest(id="offers"), timeout=CALL), "offers")
    refused(missing, lambda: inference.LoadModel(pb.LoadModelRequest(id="nobody@1"), timeout=CALL), "nobody")
    refused(missing, lambda: inference.UnloadModel(pb.UnloadModelRequest(id="nobody@1"), timeout=CALL), "nobody")
    assert generate(inference, PROMPT, greedy(2)).finish.completion_tokens == 2


def test_a_schema_is_kept_to(inference):
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}, "count": {"type": "integer"}},
        "required": ["city", "count"],
        "additionalProperties": False,
    }
    sampling = pb.Sampling(temperature=1, seed=3, max_tokens=80, json_schema=json.dumps(schema))
    answer = Answer(inference.Chat(pb.ChatRequest(messages=QUESTION, sampling=sampling), timeout=CALL))
    assert answer.finish.reason == pb.FINISH_REASON_STOP, f"{answer.finish} {answer.text!r}"
    said = json.loads(answer.text)
    assert set(said) == {"city", "count"}, said
    assert isinstance(said["city"], str) and len(said["city"]) <= 12, said
    assert isinstance(said["count"], int) and not isinstance(said["count"], bool), said


def given_up(inference, before):
    """Waits until an answer was given up, and its place is free again."""

    def done():
        now = settled(inference)
        return now and now.ended_total["abort"] > before.ended_total["abort"]

    eventually(lambda: f"{stats(inference)}, before {before}", done)


def test_a_deadline_ends_the_call_and_not_the_server(inference):
    before = eventually(lambda: stats(inference), lambda: settled(inference))
    request = pb.GenerateRequest(prompt=PROMPT, sampling=greedy(900, ignore_eos=True))
    begun = time.monotonic()
    refused(grpc.StatusCode.DEADLINE_EXCEEDED, lambda: inference.Generate(request, timeout=0.05))
    assert time.monotonic() - begun < 5, "the call outlived its deadline"

    given_up(inference, before)
    # One that is over before it begins: whichever side notices, it is the same answer.
    refused(grpc.StatusCode.DEADLINE_EXCEEDED, lambda: inference.Generate(request, timeout=1e-6))
    assert generate(inference, PROMPT, greedy(4)).finish.completion_tokens == 4


def test_a_call_that_is_cancelled_gives_its_place_back(inference):
    before = eventually(lambda: stats(inference), lambda: settled(inference))
    request = pb.GenerateRequest(prompt=PROMPT, sampling=greedy(900, ignore_eos=True))
    stream = inference.Generate(request, timeout=CALL)
    next(stream)
    stream.cancel()
    given_up(inference, before)


# The Open Inference Protocol


def tensor(name, value, **more):
    contents = v2.InferTensorContents(bytes_contents=[value.encode()])
    return v2.ModelInferRequest.InferInputTensor(name=name, datatype="BYTES", shape=[1], contents=contents, **more)


def parameters(tokens):
    return {"max_tokens": v2.InferParameter(int64_param=tokens), "temperature": v2.InferParameter(double_param=0)}


def outputs(response):
    return {output.name: output for output in response.outputs}


def test_the_server_and_the_base_are_ready(open_inference):
    assert open_inference.ServerLive(v2.ServerLiveRequest(), timeout=CALL).live
    assert open_inference.ServerReady(v2.ServerReadyRequest(), timeout=CALL).ready
    assert open_inference.ModelReady(v2.ModelReadyRequest(name="base"), timeout=CALL).ready
    assert not open_inference.ModelReady(v2.ModelReadyRequest(name="nobody"), timeout=CALL).ready
    server = open_inference.ServerMetadata(v2.ServerMetadataRequest(), timeout=CALL)
    assert server.name == "firn" and server.version, server


def test_a_model_s_tensors_are_told(open_inference):
    model = open_inference.ModelMetadata(v2.ModelMetadataRequest(name="base"), timeout=CALL)
    assert model.name == "base", model
    inputs = {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in model.inputs}
    assert inputs == {"text": ("BYTES", [1]), "messages": ("BYTES", [1])}, inputs
    told = {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in model.outputs}
    assert told == {"text": ("BYTES", [1]), "ids": ("INT64", [-1]), "finish_reason": ("BYTES", [1])}, told
    missing = v2.ModelMetadataRequest(name="nobody")
    refused(grpc.StatusCode.NOT_FOUND, lambda: open_inference.ModelMetadata(missing, timeout=CALL), "nobody")


def test_contents_and_raw_bytes_are_answered_alike(inference, open_inference):
    expected = generate(inference, PROMPT, greedy(12))
    request = v2.ModelInferRequest(
        model_name="base", id="seven", inputs=[tensor("text", PROMPT)], parameters=parameters(12)
    )
    by_contents = open_inference.ModelInfer(request, timeout=CALL)
    request.inputs[0].ClearField("contents")
    text = PROMPT.encode()
    request.raw_input_contents.append(len(text).to_bytes(4, "little") + text)
    by_raw = open_inference.ModelInfer(request, timeout=CALL)
    for response in (by_contents, by_raw):
        assert (response.model_name, response.id) == ("base", "seven"), response
        found = outputs(response)
        assert list(found["text"].contents.bytes_contents) == [expected.text.encode()], response
        assert list(found["ids"].contents.int64_contents) == expected.ids, response
        assert list(found["ids"].shape) == [12] and found["ids"].datatype == "INT64", response
        assert list(found["finish_reason"].contents.bytes_contents) == [b"length"], response


def test_messages_are_answered_as_a_chat(inference, open_inference):
    expected = Answer(inference.Chat(pb.ChatRequest(messages=QUESTION, sampling=greedy(40)), timeout=CALL))
    messages = json.dumps([{"role": turn.role, "content": turn.content} for turn in QUESTION])
    request = v2.ModelInferRequest(inputs=[tensor("messages", messages)], parameters=parameters(40))
    found = outputs(open_inference.ModelInfer(request, timeout=CALL))
    assert list(found["text"].contents.bytes_contents) == [expected.text.encode()], found
    assert list(found["finish_reason"].contents.bytes_contents) == [b"stop"], found


def test_wrong_tensors_are_refused(open_inference):
    def infer(**request):
        return lambda: open_inference.ModelInfer(v2.ModelInferRequest(**request), timeout=CALL)

    text = tensor("text", PROMPT)
    number = v2.ModelInferRequest.InferInputTensor(
        name="text", datatype="INT64", shape=[1], contents=v2.InferTensorContents(int64_contents=[1])
    )
    pair = tensor("text", PROMPT)
    pair.shape[0] = 2
    bare = v2.ModelInferRequest.InferInputTensor(name="text", datatype="BYTES", shape=[1])
    wrong = grpc.StatusCode.INVALID_ARGUMENT
    refused(wrong, infer(), "text or messages")
    refused(wrong, infer(inputs=[text, text]), "text or messages")
    refused(wrong, infer(inputs=[tensor("prompt", PROMPT)]), "prompt")
    refused(wrong, infer(inputs=[number]), "BYTES")
    refused(wrong, infer(inputs=[pair]), "BYTES")
    refused(wrong, infer(inputs=[bare]), "contents")
    refused(wrong, infer(inputs=[bare], raw_input_contents=[b"\x09\x00\x00\x00short"]), "raw_input_contents")
    refused(wrong, infer(inputs=[text], raw_input_contents=[b"\x01\x00\x00\x00x"]), "contents")
    refused(wrong, infer(inputs=[tensor("messages", "no JSON")]), "messages")
    refused(wrong, infer(inputs=[text], parameters={"tempo": v2.InferParameter(int64_param=1)}), "tempo")
    refused(wrong, infer(inputs=[text], parameters={"max_tokens": v2.InferParameter(string_param="1")}), "max_tokens")
    refused(grpc.StatusCode.NOT_FOUND, infer(model_name="nobody", inputs=[text]), "nobody")
