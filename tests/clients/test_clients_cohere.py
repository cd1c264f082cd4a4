"""cohere's ClientV2: embed and rerank."""

from __future__ import annotations

from collections.abc import Iterator

import cohere
import pytest

DOCUMENTS = ["A tax return is due in May.", "A kitten is a young cat.", "Granite is an igneous rock."]


@pytest.fixture(scope="module")
def client(minilm: str) -> Iterator[cohere.ClientV2]:
    with cohere.ClientV2(api_key="none", base_url=minilm) as client:
        yield client


def test_embed(client: cohere.ClientV2) -> None:
    reply = client.embed(
        model="minilm", texts=DOCUMENTS, input_type="search_document", embedding_types=["float", "base64"]
    )
    assert reply.embeddings.float_ is not None
    assert reply.embeddings.base64 is not None
    assert [len(vector) for vector in reply.embeddings.float_] == [384] * 3
    assert reply.texts == DOCUMENTS
    assert reply.meta is not None
    assert reply.meta.billed_units is not None
    assert (reply.meta.billed_units.input_tokens or 0) > 0
    cut = client.embed(model="minilm", texts=["fox " * 2000], input_type="search_query", truncate="END")
    assert len((cut.embeddings.float_ or [])[0]) == 384


def test_rerank(client: cohere.ClientV2) -> None:
    reply = client.rerank(model="minilm", query="What is a kitten?", documents=DOCUMENTS, top_n=2)
    assert len(reply.results) == 2
    assert reply.results[0].index == 1
    assert reply.results[0].relevance_score > reply.results[1].relevance_score


def test_errors(client: cohere.ClientV2) -> None:
    with pytest.raises(cohere.NotFoundError, match="none-such"):
        client.embed(model="none-such", texts=DOCUMENTS, input_type="search_query")
    with pytest.raises(cohere.BadRequestError, match="tokens"):
        client.embed(model="minilm", texts=["fox " * 2000], input_type="search_query", truncate="NONE")
