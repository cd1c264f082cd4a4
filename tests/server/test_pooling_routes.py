"""The routes that pool, over real engines with small random encoders: shapes, equality with LLM, errors by name."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import checkpoints
import encoders
import msgspec
import numpy as np
import openai
import pytest
from serving import LiveServer, wait_for
from test_bad_input import VALUES, check_form, with_field

from octavo.api.async_llm import AsyncLLM
from octavo.api.llm import LLM
from octavo.server.openai.pooling import run, types

OPTIONS: dict[str, Any] = {"device": "cpu", "threads": 1, "max_num_seqs": 8, "max_num_queued_reqs": 64}
TEXTS = ["An octavo is a sheet folded.", "The quick brown fox.", "Greedy output equals the reference's."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = encoders.make_encoder("bert", tmp_path_factory.mktemp("bert"))
    encoders.write_sentence_files(path, mode="mean_tokens", normalize=True)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "matryoshka_dimensions": [8, 16]}))
    return path


@pytest.fixture(scope="module")
def embedder(folder: Path) -> Iterator[LiveServer]:
    with LiveServer(AsyncLLM(str(folder), **OPTIONS), served_model_name=["e"]) as live:
        yield live
        wait_for(lambda: len(live.app.traffic) == 0)
        assert live.run(lambda: live.llm.call("check")) is True


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[list[float]]:
    with LLM(str(folder), device="cpu") as llm:
        return [output.outputs.embedding for output in llm.embed(TEXTS, use_tqdm=False)]


@pytest.fixture(scope="module", params=["bert_classifier", "bert_cross"])
def classifier(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    path = encoders.make_encoder(request.param, tmp_path_factory.mktemp(request.param))
    with LiveServer(AsyncLLM(str(path), **OPTIONS)) as live:
        yield live


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    path = checkpoints.make_checkpoint("qwen3", tmp_path_factory.mktemp("qwen3"))
    with LiveServer(AsyncLLM(str(path), runner="pooling", max_model_len=256, **OPTIONS)) as live:
        yield live


def test_invocations_of_encoders(embedder: LiveServer, classifier: LiveServer) -> None:
    """As SageMaker calls every model: by one path."""

    def same(server: LiveServer, path: str, **body: Any) -> None:
        told, invoked = ({**ok(server, route, **body), "id": "", "created": 0} for route in (path, "/invocations"))
        assert told == invoked

    same(embedder, "/v1/embeddings", input=TEXTS)
    same(embedder, "/pooling", input=TEXTS[0], task="token_embed")
    same(embedder, "/score", text_1=TEXTS[0], text_2=TEXTS)
    same(embedder, "/score", queries=TEXTS[0], documents=TEXTS)
    same(embedder, "/score", queries=TEXTS[0], items=TEXTS)
    same(embedder, "/score", data_1=TEXTS[0], data_2=TEXTS)
    refused(embedder, "/score", "text_1", "queries, data_1 are one thing", text_1="a", data_1="b", items="c")
    same(embedder, "/rerank", query=TEXTS[0], documents=TEXTS)
    same(classifier, "/classify", input=TEXTS)


def ok(server: LiveServer, path: str, **body: Any) -> Any:
    answer = server.post(path, body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(server: LiveServer, path: str, param: str | None, text: str, **body: Any) -> None:
    error = check_form(server.post(path, body))
    assert error["param"] == param, error
    assert text in error["message"]


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_openais_client(embedder: LiveServer, expected: list[list[float]], encoding: Any) -> None:
    client = openai.OpenAI(base_url=embedder.url + "/v1", api_key="none")
    reply = client.embeddings.create(model="e", input=TEXTS, encoding_format=encoding)
    for index, entry in enumerate(reply.data):
        vector: Any = entry.embedding
        if encoding == "base64":
            vector = np.frombuffer(base64.b64decode(vector), "<f4")
        np.testing.assert_allclose(vector, expected[index], atol=1e-6)
    assert [entry.index for entry in reply.data] == [0, 1, 2]
    assert reply.usage.prompt_tokens == reply.usage.total_tokens > 20
    # the client's own default asks for base64 and gives numbers
    np.testing.assert_allclose(
        client.embeddings.create(model="e", input=TEXTS[0]).data[0].embedding, expected[0], atol=1e-6
    )
    short = client.embeddings.create(model="e", input=TEXTS[:1], dimensions=8).data[0].embedding
    cut = np.array(expected[0][:8])
    np.testing.assert_allclose(short, cut / np.linalg.norm(cut), atol=1e-6)


def test_inputs_as_token_ids(embedder: LiveServer, expected: list[list[float]]) -> None:
    ids = ok(embedder, "/tokenize", prompt=TEXTS[1])["tokens"]
    for given in (ids, [ids]):
        vector = ok(embedder, "/v1/embeddings", input=given)["data"][0]["embedding"]
        np.testing.assert_allclose(vector, expected[1], atol=1e-6)
    refused(embedder, "/v1/embeddings", "input", "token id -1", input=[5, -1])
    refused(embedder, "/v1/embeddings", "input", f"token id {encoders.VOCAB_SIZE}", input=[[encoders.VOCAB_SIZE]])
    refused(embedder, "/v1/embeddings", "input", "mixes", input=[5, "a"])
    refused(embedder, "/v1/embeddings", "input", "empty", input=[])


def test_long_texts(embedder: LiveServer) -> None:
    text = "fox " * 50
    refused(embedder, "/v1/embeddings", "input", "truncate_prompt_tokens", input=[TEXTS[0], text])
    whole = ok(embedder, "/v1/embeddings", input=text, truncate_prompt_tokens=-1)
    assert whole["usage"]["prompt_tokens"] == 32
    assert ok(embedder, "/v1/embeddings", input=text, truncate_prompt_tokens=9)["usage"]["prompt_tokens"] == 9
    refused(embedder, "/v1/embeddings", "truncate_prompt_tokens", "32 tokens", input=text, truncate_prompt_tokens=33)


def test_without_special_tokens(embedder: LiveServer, classifier: LiveServer) -> None:
    for server, path in ((embedder, "/v1/embeddings"), (embedder, "/pooling"), (classifier, "/classify")):
        whole, same, bare = (
            ok(server, path, input=TEXTS[:2], **asked)
            for asked in ({}, {"add_special_tokens": True}, {"add_special_tokens": False})
        )
        assert whole["data"] == same["data"] != bare["data"]
        assert whole["usage"]["prompt_tokens"] == bare["usage"]["prompt_tokens"] + 4  # [CLS] and [SEP]
        ids = ok(server, path, input=[5, 6])["data"]
        assert ok(server, path, input=[5, 6], add_special_tokens=False)["data"] == ids
        refused(server, path, "input", "empty", input="", add_special_tokens=False)


def test_dimensions_and_normalization(embedder: LiveServer, expected: list[list[float]]) -> None:
    refused(embedder, "/v1/embeddings", "dimensions", "one of 8, 16", input="a", dimensions=9)
    plain = ok(embedder, "/v1/embeddings", input=TEXTS[0], normalize=False)["data"][0]["embedding"]
    ragflows = ok(embedder, "/v1/embeddings", input=TEXTS[:1], encoding_format="float", drop_params=True)
    assert ragflows["data"][0]["embedding"] == ok(embedder, "/v1/embeddings", input=TEXTS[0])["data"][0]["embedding"]
    assert np.linalg.norm(plain) != pytest.approx(1.0, abs=1e-3)
    np.testing.assert_allclose(plain / np.linalg.norm(plain), expected[0], atol=1e-6)


CHAT = [{"role": "user", "content": "An octavo"}, {"role": "assistant", "content": "is a sheet"}]


@pytest.mark.parametrize(
    "asked", [{}, {"add_generation_prompt": True}, {"continue_final_message": True, "chat_template_kwargs": {"a": 1}}]
)
def test_vectors_of_conversations(decoder: LiveServer, asked: dict[str, Any]) -> None:
    told = {"add_generation_prompt": False, **asked}
    ids = ok(decoder, "/tokenize", messages=CHAT, **told)["tokens"]
    for path, key in (("/v1/embeddings", "embedding"), ("/pooling", "data"), ("/invocations", "embedding")):
        whole = ok(decoder, path, messages=CHAT, **asked)
        expected = ok(decoder, "/v1/embeddings", input=ids)["data"][0]["embedding"]
        np.testing.assert_allclose(whole["data"][0][key], expected, atol=1e-6)
        assert whole["usage"]["prompt_tokens"] == len(ids)
    cut = ok(decoder, "/v1/embeddings", messages=CHAT, truncate_prompt_tokens=4, **asked)
    assert cut["usage"]["prompt_tokens"] == 4


def test_conversations_that_are_none(decoder: LiveServer, embedder: LiveServer) -> None:
    refused(decoder, "/v1/embeddings", "input", "is required")
    refused(decoder, "/v1/embeddings", "messages", "exclude each other", messages=CHAT, input="a")
    refused(decoder, "/pooling", "chat_template_kwargs", "for messages", input="a", chat_template_kwargs={"a": 1})
    refused(
        decoder, "/v1/embeddings", "add_special_tokens", "the chat template", messages=CHAT, add_special_tokens=True
    )
    refused(decoder, "/v1/embeddings", "messages", "shorten it", messages=CHAT * 40)
    refused(decoder, "/v1/embeddings", "chat_template", "trust-request", messages=CHAT, chat_template="{{ messages }}")
    refused(embedder, "/v1/embeddings", "messages", "no chat template", messages=CHAT)


def test_every_tokens_vectors_are_bounded(embedder: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "MAX_NUMBERS", 3000)
    refused(embedder, "/pooling", "input", "fewer texts", input=TEXTS * 4, task="token_embed")
    assert len(ok(embedder, "/pooling", input=TEXTS * 4)["data"]) == 12


def test_every_tokens_vector(embedder: LiveServer) -> None:
    reply = ok(embedder, "/pooling", input=TEXTS[:1], task="token_embed")
    assert np.array(reply["data"][0]["data"]).shape == (reply["usage"]["prompt_tokens"], encoders.BASE["hidden_size"])
    one = ok(embedder, "/pooling", input=TEXTS[0])["data"][0]
    assert (one["object"], len(one["data"])) == ("pooling", encoders.BASE["hidden_size"])
    refused(embedder, "/pooling", "task", "makes embeddings", input="a", task="classify")


def test_coheres_embeddings(embedder: LiveServer, expected: list[list[float]]) -> None:
    body = {"texts": TEXTS, "input_type": "search_document", "embedding_types": ["float", "base64"]}
    reply = ok(embedder, "/v2/embed", model="e", **body)
    np.testing.assert_allclose(reply["embeddings"]["float"], expected, atol=1e-6)
    decoded = [np.frombuffer(base64.b64decode(one), "<f4") for one in reply["embeddings"]["base64"]]
    np.testing.assert_allclose(decoded, expected, atol=1e-6)
    asked = ["ubinary", "binary"]
    signs = ok(embedder, "/v2/embed", texts=TEXTS, embedding_types=asked, output_dimension=16)["embeddings"]
    assert list(signs) == asked
    assert signs["ubinary"] == np.packbits(np.array(expected)[:, :16] >= 0, axis=1).tolist()
    assert signs["binary"] == [[byte - 128 for byte in one] for one in signs["ubinary"]]
    refused(embedder, "/v2/embed", "embedding_types", "uint8 need the ranges", texts=["a"], embedding_types=["int8"])
    asked = {"embedding_types": ["float", "binary"], "output_dimension": 9}
    refused(embedder, "/v2/embed", "embedding_types", "multiple of 8", texts=["a"], **asked)
    assert reply["texts"] == TEXTS
    assert reply["meta"]["billed_units"]["input_tokens"] > 20
    query = ok(embedder, "/v2/embed", texts=TEXTS[:1], input_type="search_query")["embeddings"]["float"][0]
    prefixed = ok(embedder, "/v1/embeddings", input="query: " + TEXTS[0])["data"][0]["embedding"]
    np.testing.assert_allclose(query, prefixed, atol=1e-6)
    assert ok(embedder, "/v2/embed", texts=["fox " * 50])["meta"]["billed_units"]["input_tokens"] == 32
    refused(embedder, "/v2/embed", "texts", "takes 32: ", texts=["fox " * 50], truncate="NONE")
    refused(embedder, "/v2/embed", "texts", " by truncate END", texts=["fox " * 50], truncate="NONE")
    assert check_form(embedder.post("/v2/embed", {"texts": ["a"], "truncate": "START"}))["param"] == "truncate"
    refused(embedder, "/v2/embed", "max_tokens", "max_tokens=99 is more", texts=["a"], max_tokens=99)
    refused(embedder, "/v2/embed", "output_dimension", "output_dimension must be", texts=["a"], output_dimension=9)
    refused(embedder, "/v2/embed", "output_dimension", "output_dimension must be", texts=["a"], output_dimension=0)


@pytest.mark.parametrize("input_type", ["query", "search_query", "document", "passage", "search_document"])
def test_input_types_of_other_apis(embedder: LiveServer, input_type: str) -> None:
    begin = "query: " if "query" in input_type else ""  # the files have a prompt for queries alone
    vectors = [one["embedding"] for one in ok(embedder, "/v1/embeddings", input=TEXTS, input_type=input_type)["data"]]
    expected = ok(embedder, "/v1/embeddings", input=[begin + text for text in TEXTS])["data"]
    np.testing.assert_allclose(vectors, [one["embedding"] for one in expected], atol=1e-6)
    body = {"input": TEXTS[0], "input_type": input_type, "add_special_tokens": False}
    bare = ok(embedder, "/v1/embeddings", input=begin + TEXTS[0], add_special_tokens=False)["data"][0]["embedding"]
    np.testing.assert_allclose(ok(embedder, "/v1/embeddings", **body)["data"][0]["embedding"], bare, atol=1e-6)


def test_input_types_are_of_texts(embedder: LiveServer, decoder: LiveServer) -> None:
    refused(embedder, "/v1/embeddings", "input_type", "holds token ids", input=[[5, 6]], input_type="query")
    refused(decoder, "/v1/embeddings", "input_type", "leave it out with messages", messages=CHAT, input_type="query")
    refused(embedder, "/v1/embeddings", "input_type", "'query'", input="a", input_type="question")


def test_scores_of_embeddings_are_cosines(embedder: LiveServer, expected: list[list[float]]) -> None:
    scores = [entry["score"] for entry in ok(embedder, "/score", text_1=TEXTS[0], text_2=TEXTS)["data"]]
    np.testing.assert_allclose(scores, np.array(expected) @ expected[0], atol=1e-6)
    results = ok(embedder, "/rerank", query=TEXTS[0], documents=[TEXTS[1], {"text": TEXTS[0]}], top_n=1)["results"]
    assert [(entry["index"], entry["document"]["text"]) for entry in results] == [(1, TEXTS[0])]
    refused(embedder, "/classify", "task", "makes embeddings", input="a")
    refused(embedder, "/score", "text_1", "3 of text_2", text_1=TEXTS[:2], text_2=TEXTS)
    many = ["b"] * 1025
    refused(embedder, "/rerank", "documents", "at most 1024", query="a", documents=many)
    refused(embedder, "/score", "documents", "at most 1024", queries="a", documents=many)
    refused(embedder, "/score", "text_1", "at most 1024", text_1=many, text_2=TEXTS)
    refused(embedder, "/v2/embed", "texts", "at most 1024", texts=many)


def test_a_cross_encoder(classifier: LiveServer) -> None:
    labels = len(classifier.llm.model.labels)
    reply = ok(classifier, "/classify", input=TEXTS)
    for index, entry in enumerate(reply["data"]):
        assert (entry["index"], entry["num_classes"], len(entry["probs"])) == (index, labels, labels)
        assert entry["label"] == f"LABEL_{int(np.argmax(entry['probs']))}"
    if labels > 1:
        refused(classifier, "/score", "task", "one label", text_1="a", text_2="b")
        return
    scores = [entry["score"] for entry in ok(classifier, "/v1/score", queries="fox", documents=TEXTS)["data"]]
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        results = ok(classifier, path, query="fox", documents=TEXTS, return_documents=False)["results"]
        assert [entry["index"] for entry in results] == sorted(range(3), key=lambda i: -scores[i])
        assert [entry["relevance_score"] for entry in results] == sorted(scores, reverse=True)
        assert not any("document" in entry for entry in results)
    raw = ok(classifier, "/score", text_1="fox", text_2=TEXTS[0], use_activation=False)["data"][0]["score"]
    assert 1 / (1 + np.exp(-raw)) == pytest.approx(scores[0], abs=1e-6)
    refused(classifier, "/v1/embeddings", "task", "convert=embed", input="a")


def test_documents_are_cut_for_reranking(embedder: LiveServer) -> None:
    """As LangChain (null) and Haystack (4096) ask Cohere's API for."""
    long, short = "the quick brown fox " * 100, "The quick"

    def scores(most: int | None, *documents: str) -> list[float]:
        results = ok(embedder, "/v2/rerank", query="fox", documents=documents, max_tokens_per_doc=most)["results"]
        for entry in results:
            assert entry["document"]["text"] == documents[entry["index"]]  # whole
        return [entry["relevance_score"] for entry in sorted(results, key=lambda entry: entry["index"])]

    assert scores(2, long, short) == pytest.approx(scores(None, short) * 2)
    assert scores(4096, *TEXTS) == scores(None, *TEXTS) == scores(0, *TEXTS)
    for most in (None, 0, 4096):  # more than the model takes
        refused(embedder, "/rerank", "documents", "tokens", query="fox", documents=[long], max_tokens_per_doc=most)
    refused(embedder, "/rerank", "max_tokens_per_doc", ">= 0", query="fox", documents=["a"], max_tokens_per_doc=-1)
    chunks = {"query": "fox", "documents": ["a"], "max_chunks_per_doc": 10}  # LangChain's JavaScript sends null
    refused(embedder, "/v1/rerank", "max_chunks_per_doc", "max_tokens_per_doc", **chunks)
    reply = ok(embedder, "/v1/rerank", **{**chunks, "max_chunks_per_doc": None})
    billed = {"input_tokens": reply["usage"]["prompt_tokens"]}
    assert reply["meta"] == {"api_version": {"version": "2"}, "billed_units": billed}  # the AI SDK wants it


def test_a_decoder_that_reranks_by_two_tokens(tmp_path: Path) -> None:
    path = checkpoints.make_checkpoint("qwen3", tmp_path / "qwen3")
    keys = {"classifier_from_token": ["o", "f"], "is_original_qwen3_reranker": True}
    keys["architectures"] = ["Qwen3ForSequenceClassification"]
    with LLM(str(path), device="cpu", hf_overrides=keys) as llm:
        expected = [output.outputs.score for output in llm.score("fox", TEXTS, use_tqdm=False)]
    with LiveServer(AsyncLLM(str(path), hf_overrides=keys, **OPTIONS)) as live:
        found = {entry["index"]: entry for entry in ok(live, "/rerank", query="fox", documents=TEXTS)["results"]}
    scores = [found[index]["relevance_score"] for index in range(len(TEXTS))]
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert len(set(scores)) == len(TEXTS)


def test_a_model_that_pools_does_not_generate(embedder: LiveServer, folder: Path) -> None:
    refused(embedder, "/v1/completions", "model", "makes embeddings", prompt="a")
    refused(embedder, "/v1/chat/completions", "model", "makes embeddings", messages=[{"role": "user", "content": "a"}])
    refused(embedder, "/v1/responses", "model", "makes embeddings", model="e", input="a")
    said = embedder.post(
        "/v1/messages", {"model": "e", "max_tokens": 3, "messages": [{"role": "user", "content": "a"}]}
    )
    assert (said.status_code, "makes embeddings" in said.text) == (400, True)
    generates = checkpoints.make_checkpoint("llama", folder.parent / "llama")
    with LiveServer(AsyncLLM(str(generates), kv_cache_memory_bytes=4 << 20, **OPTIONS)) as live:
        for path, body in (("/v1/embeddings", {"input": "a"}), ("/rerank", {"query": "a", "documents": ["b"]})):
            for route in (path, "/invocations"):
                refused(live, route, "model", "--runner pooling", **body)


def test_metrics_count_prompts(embedder: LiveServer) -> None:
    ok(embedder, "/v1/embeddings", input=TEXTS)
    lines = embedder.client.get("/metrics").text.splitlines()
    finished = next(line for line in lines if line.startswith("vllm:request_success_total") and '"stop"' in line)
    assert float(finished.split()[-1]) >= 3
    tokens = next(line for line in lines if line.startswith("vllm:prompt_tokens_total"))
    assert float(tokens.split()[-1]) > 20


def test_prompts_whose_client_goes_away_are_aborts(embedder: LiveServer) -> None:
    counted = embedder.app._services.metrics.requests.finished
    before = dict(counted)
    body = json.dumps({"input": ["a b c d" * 4] * 1000}).encode()
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with embedder.connect() as connection:
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        wait_for(lambda: counted["stop"] > before["stop"])
    wait_for(lambda: len(embedder.app.traffic) == 0)
    assert 0 < counted["abort"] - before["abort"] <= OPTIONS["max_num_seqs"]


ROUTES: list[tuple[str, type[msgspec.Struct], dict[str, Any]]] = [
    ("/v1/embeddings", types.EmbeddingRequest, {"input": "hi"}),
    ("/pooling", types.PoolRequest, {"input": "hi"}),
    ("/classify", types.ClassifyRequest, {"input": "hi"}),
    ("/score", types.ScoreRequest, {"text_1": "hi", "text_2": "ho"}),
    ("/rerank", types.RerankRequest, {"query": "hi", "documents": ["ho"]}),
    ("/v2/embed", types.EmbedRequest, {"texts": ["hi"]}),
]


@pytest.mark.parametrize(("path", "kind", "base"), ROUTES, ids=[route[0] for route in ROUTES])
def test_values(embedder: LiveServer, path: str, kind: Any, base: dict[str, Any]) -> None:
    for name in kind.__struct_fields__:
        for value in VALUES:
            answer = embedder.post(path, with_field(base, name, value))
            if answer.status_code != 200:
                check_form(answer)
    check_form(embedder.post(path, {**base, "nonsense": 1}))


def test_a_batch_of_embeddings(embedder: LiveServer, expected: list[list[float]]) -> None:
    url = "/v1/embeddings"
    lines = [{"custom_id": text, "method": "POST", "url": url, "body": {"model": "e", "input": text}} for text in TEXTS]
    with embedder.openai() as client:
        content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        file = client.files.create(file=("in.jsonl", content), purpose="batch")
        name = client.batches.create(input_file_id=file.id, endpoint=url, completion_window="24h").id
        wait_for(lambda: client.batches.retrieve(name).status == "completed")
        results = client.files.content(client.batches.retrieve(name).output_file_id or "").text
    rows = [json.loads(line) for line in results.splitlines()]
    found = {row["custom_id"]: row["response"]["body"]["data"][0]["embedding"] for row in rows}
    for text, vector in zip(TEXTS, expected, strict=True):
        np.testing.assert_allclose(found[text], vector, atol=1e-5)


def test_other_protocols_tell_that_it_does_not_generate(embedder: LiveServer) -> None:
    assert "does not generate" in check_form(embedder.post("/v1/responses", {"input": "x"}))["message"]
    asked = {"model": "e", "max_tokens": 2, "messages": [{"role": "user", "content": "x"}]}
    assert "does not generate" in embedder.post("/v1/messages", asked).json()["error"]["message"]
