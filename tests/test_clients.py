"""Clients of others, unchanged, against a real server process: Cohere's SDK, LangChain's, LlamaIndex's, MTEB's."""

from __future__ import annotations

import asyncio
import gc
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.load_kit import KEY, ROOT, stub_server
from tests.served import Served
from tests.stub_scorer import score_of

QUERY = "red door"
TEXTS = ["a wall", "the red door", "door", "a red wall and so on"]
RAW = [score_of(QUERY, text) for text in TEXTS]
ORDER = sorted(range(len(TEXTS)), key=lambda i: -RAW[i])
SCORES = [1 / (1 + math.exp(-RAW[i])) for i in ORDER]

pytestmark = [
    # What the libraries themselves do, as far as it is nothing that this project could mend.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]


@pytest.fixture(autouse=True)
def _clients_end_here() -> Iterator[None]:
    """Some of them never close their sockets; what that warns of is to be said in their own test."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with stub_server(tmp_path_factory.mktemp("stub")) as served:
        yield served


@pytest.fixture(scope="module")
def open_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Without a key."""
    with stub_server(tmp_path_factory.mktemp("stub"), key="") as served:
        yield served


def test_cohere_v2(server: Served) -> None:
    import cohere

    client = cohere.ClientV2(api_key=KEY, base_url=server.url)
    answer = client.rerank(model="rerank-v3.5", query=QUERY, documents=TEXTS, top_n=3)
    assert [result.index for result in answer.results] == ORDER[:3]
    assert [result.relevance_score for result in answer.results] == pytest.approx(SCORES[:3])
    assert answer.meta is not None
    assert answer.meta.billed_units is not None
    assert answer.meta.billed_units.search_units == 1


def test_cohere_v1(server: Served) -> None:
    import cohere

    client = cohere.Client(api_key=KEY, base_url=server.url)
    answer = client.rerank(model="rerank-v3.5", query=QUERY, documents=TEXTS, return_documents=True)
    assert [result.index for result in answer.results] == ORDER
    assert [result.document.text for result in answer.results if result.document] == [TEXTS[i] for i in ORDER]


@pytest.mark.parametrize("mistake", ["key", "documents"])
def test_cohere_tells_errors_apart(server: Served, mistake: str) -> None:
    import cohere
    from cohere.errors import UnauthorizedError, UnprocessableEntityError

    client = cohere.ClientV2(api_key="wrong" if mistake == "key" else KEY, base_url=server.url)
    with pytest.raises(UnauthorizedError if mistake == "key" else UnprocessableEntityError) as refused:
        client.rerank(model="rerank-v3.5", query=QUERY, documents=TEXTS if mistake == "key" else [])
    body: Any = refused.value.body
    assert body["error"]["type"] == ("unauthorized" if mistake == "key" else "over_limit")


def test_cohere_async(server: Served) -> None:
    import cohere

    async def order() -> list[int]:
        async with cohere.AsyncClientV2(api_key=KEY, base_url=server.url) as client:
            answer = await client.rerank(model="rerank-v3.5", query=QUERY, documents=TEXTS)
            return [result.index for result in answer.results]

    assert asyncio.run(order()) == ORDER


def test_langchain_cohere(server: Served) -> None:
    from langchain_cohere import CohereRerank
    from langchain_core.documents import Document
    from pydantic import SecretStr

    reranker = CohereRerank(model="any", cohere_api_key=SecretStr(KEY), base_url=server.url, top_n=2)
    documents = [Document(text, metadata={"place": i}) for i, text in enumerate(TEXTS)]
    found = reranker.compress_documents(documents, QUERY)
    assert [document.metadata["place"] for document in found] == ORDER[:2]
    assert [document.metadata["relevance_score"] for document in found] == pytest.approx(SCORES[:2])


def nodes() -> list[Any]:
    from llama_index.core.schema import NodeWithScore, TextNode

    return [NodeWithScore(node=TextNode(text=text, id_=str(i)), score=0.0) for i, text in enumerate(TEXTS)]


@pytest.mark.parametrize("kind", ["cohere", "jina"])
def test_llama_index(server: Served, kind: str) -> None:
    if kind == "cohere":
        from llama_index.postprocessor.cohere_rerank import CohereRerank

        reranker: Any = CohereRerank(top_n=3, model="any", api_key=KEY, base_url=server.url)
    else:
        from llama_index.postprocessor.jinaai_rerank import JinaRerank

        reranker = JinaRerank(top_n=3, model="any", api_key=KEY, base_url=f"{server.url}/v1")
    found = reranker.postprocess_nodes(nodes(), query_str=QUERY)
    assert [node.node.node_id for node in found] == [str(i) for i in ORDER[:3]]
    assert [node.score for node in found] == pytest.approx(SCORES[:3])


def check_mteb(wrapper: Any) -> None:
    from torch.utils.data import DataLoader

    texts = [*TEXTS, ""]  # corpora have empty documents
    queries: Any = DataLoader([{"text": QUERY} for _ in texts], batch_size=2)  # pyright: ignore[reportArgumentType]
    documents: Any = DataLoader([{"text": text} for text in texts], batch_size=2)  # pyright: ignore[reportArgumentType]
    scores = wrapper.predict(
        queries, documents, task_metadata=None, hf_split="test", hf_subset="default", show_progress_bar=False
    )
    expected = [1 / (1 + math.exp(-score_of(QUERY, text))) for text in texts]
    assert list(scores) == pytest.approx(expected, rel=1e-6)


def test_mteb(open_server: Served) -> None:
    from mteb.models import OpenAIAPIRerankWrapper

    check_mteb(OpenAIAPIRerankWrapper(open_server.url, "stub", modalities=["text"]))


def test_mteb_with_a_key(server: Served) -> None:
    """Its wrapper looks for the server without its key; the page of the server has what helps."""
    from mteb.models import OpenAIAPIRerankWrapper

    with pytest.raises(ConnectionError, match="401"):
        OpenAIAPIRerankWrapper(server.url, "stub", KEY, modalities=["text"])
    page = (ROOT / "docs" / "serving.md").read_text("utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"KEY": KEY, "__name__": "example"}
    exec(code.replace("http://localhost:8000", server.url), names)
    check_mteb(names["reranker"])
    with pytest.raises(RuntimeError, match="401"):
        check_mteb(names["WithKey"](server.url, "stub", "wrong"))
