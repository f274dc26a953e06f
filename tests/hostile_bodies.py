"""Bodies that a rerank route must refuse, each with its status: 400 where it cannot be read, 413 where it is too large,
422 where it can be read and is over a limit. The same for the form of Text Embeddings Inference, and for /score."""

from __future__ import annotations

import gzip
import json
from typing import Any

FINE: dict[str, Any] = {"query": "red door", "documents": ["red door", "a wall", "door"]}
LIMIT = 4 * 2**20


def body(**fields: Any) -> bytes:
    """A request that is well but for these fields; None leaves one out."""
    return json.dumps({name: value for name, value in {**FINE, **fields}.items() if value is not None}).encode()


def raw(more: str) -> bytes:
    """A request that is well, with another member written as it stands here."""
    return f'{{"query": "red door", "documents": ["red door"], {more}}}'.encode()


def nested(depth: int, opening: str = "[", closing: str = "]") -> bytes:
    return raw(f'"user": {opening * depth}{closing * depth}')


def renamed(content: bytes, old: str, new: str) -> bytes:
    """With another name of a field."""
    return content.replace(f'"{old}"'.encode(), f'"{new}"'.encode())


def score_body(**fields: Any) -> bytes:
    """A request of /score that is well but for these fields."""
    return renamed(body(**fields), "query", "queries")


HOSTILE: dict[str, tuple[int, bytes]] = {
    # --- no JSON
    "empty": (400, b""),
    "spaces": (400, b" \n\t "),
    "words": (400, b"red door"),
    "null byte": (400, b"\x00"),
    "half": (400, body()[:-10]),
    "two objects": (400, body() + body()),
    "rubbish behind": (400, body() + b"x"),
    "trailing comma": (400, raw('"user": 1,')),
    "comment": (400, raw('/* hello */ "user": 1')),
    "single quotes": (400, body().replace(b'"', b"'")),
    "names without quotes": (400, b"{query: 1, documents: []}"),
    "leading zero": (400, raw('"top_n": 01')),
    "plus sign": (400, raw('"top_n": +1')),
    "hexadecimal": (400, raw('"top_n": 0x1')),
    "line break in a string": (400, body(query="x\n").replace(b"\\n", b"\n")),
    "unknown escape": (400, raw('"user": "\\q"')),
    "short escape": (400, raw('"user": "\\u12"')),
    "form": (400, b"query=red+door&documents=red"),
    "XML": (400, b"<query>red door</query>"),
    "pickle": (400, b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94."),
    # --- numbers
    "NaN": (400, raw('"user": NaN')),
    "Infinity": (400, raw('"user": Infinity')),
    "-Infinity": (400, raw('"user": -Infinity')),
    "1e999": (400, raw('"user": 1e999')),
    "-1e999": (400, raw('"user": [[-1e999]]')),
    "an exponent of a million": (400, raw('"user": 1E+1000000')),
    "5,000 digits": (400, raw(f'"user": {"7" * 5000}')),
    "5,000 digits as top_n": (400, raw(f'"top_n": {"7" * 5000}')),
    "4,000 digits as top_n": (422, raw(f'"top_n": {"7" * 4000}')),
    # --- text
    "lone high surrogate": (400, raw('"user": "\\ud800"')),
    "lone low surrogate": (400, raw('"user": "\\udc00"')),
    "surrogates the wrong way round": (400, raw('"user": "\\udc00\\ud800"')),
    "lone surrogate in the query": (400, b'{"query": "\\ud83d", "documents": ["a"]}'),
    "lone surrogate in a name": (400, raw('"\\ud800": 1')),
    "surrogate in UTF-8": (400, b'{"query": "\xed\xa0\x80", "documents": ["a"]}'),
    "no UTF-8": (400, b'{"query": "\xff\xfe", "documents": ["a"]}'),
    "overlong UTF-8": (400, b'{"query": "\xc0\xaf", "documents": ["a"]}'),
    "Latin-1": (400, '{"query": "Tür", "documents": ["a"]}'.encode("latin-1")),
    "byte order mark": (400, b"\xef\xbb\xbf" + body()),
    "UTF-16": (400, body().decode().encode("utf-16")),
    "UTF-32": (400, body().decode().encode("utf-32")),
    "gzip without a word of it": (400, gzip.compress(body())),
    # --- shape
    "duplicate query": (400, raw('"query": "blue door"')),
    "duplicate name inside": (400, raw('"user": {"a": 1, "a": 2}')),
    "a list": (400, b"[" + body() + b"]"),
    "a string": (400, b'"red door"'),
    "null": (400, b"null"),
    "a number": (400, b"17"),
    "100,000 lists": (400, nested(100_000)),
    "100,000 objects": (400, nested(100_000, '{"a":', "}")),
    "150 lists": (400, nested(150)),
    "65 lists": (400, nested(65)),
    "a million empty lists": (400, raw('"user": [' + "[]," * 1_000_000 + "[]]")),
    "no query": (400, body(query=None)),
    "no documents": (400, body(documents=None)),
    "query is a number": (400, body(query=7)),
    "query is a list": (400, body(query=["red door"])),
    "query is parts": (400, body(query=[{"type": "text", "text": "red"}])),
    "query is null": (400, raw('"query": null').replace(b'"query": "red door", ', b"")),
    "documents are a string": (400, body(documents="red door")),
    "documents are an object": (400, body(documents={"0": "red door"})),
    "documents are numbers": (400, body(documents=[1, 2])),
    "a document is null": (400, body(documents=["red", None])),
    "a document is a list": (400, body(documents=[["red"]])),
    "a document is an image": (400, body(documents=[{"image": "http://127.0.0.1/x.png"}])),
    "a document's text is a number": (400, body(documents=[{"text": 1}])),
    "documents and texts": (400, body(texts=["red door"])),
    "top_n is a string": (400, body(top_n="3")),
    "top_n is true": (400, body(top_n=True)),
    "top_n is 1.5": (400, body(top_n=1.5)),
    "raw_scores is a string": (400, body(raw_scores="no")),
    "ids are numbers": (400, body(ids=[1, 2, 3])),
    "model is a number": (400, body(model=4)),
    "truncation_direction is up": (400, body(truncation_direction="up")),
    "truncate is a number": (400, body(truncate=1)),
    # --- limits
    "empty query": (422, body(query="")),
    "blank query": (422, body(query=" \t\n\u2003")),
    "a query of 20,000 characters": (422, body(query="a" * 20_000)),
    "no documents in the list": (422, body(documents=[])),
    "10,000 documents": (422, body(documents=["red door"] * 10_000)),
    "1,001 documents": (422, body(documents=["red door"] * 1001)),
    "a document of 100,001 characters": (422, body(documents=["a" * 100_001])),
    "top_n is -1": (422, body(top_n=-1)),
    "top_n is 2 ** 40": (422, body(top_n=2**40)),
    "top_n and top_k differ": (422, body(top_n=1, top_k=2)),
    "too few ids": (422, body(ids=["a"])),
    "max_tokens_per_doc is -1": (422, body(max_tokens_per_doc=-1)),
    "ids twice": (422, body(ids=["a", "a", "b"])),
    "a huge string": (413, body(query="a" * LIMIT)),
    "huge spaces": (413, b" " * (LIMIT + 1)),
}

HOSTILE_TEI = {name: (status, renamed(content, "documents", "texts")) for name, (status, content) in HOSTILE.items()}

RERANK_ONLY = {
    "4,000 digits as top_n",
    "query is a list",
    "documents are a string",
    "documents and texts",
    "top_n is a string",
    "top_n is true",
    "top_n is 1.5",
    "ids are numbers",
    "truncation_direction is up",
    "truncate is a number",
    "top_n is -1",
    "top_n is 2 ** 40",
    "top_n and top_k differ",
    "too few ids",
    "max_tokens_per_doc is -1",
    "ids twice",
}
"""What /score takes, or does not look at."""

HOSTILE_SCORE: dict[str, tuple[int, bytes]] = {
    **{
        name: (status, renamed(content, "query", "queries"))
        for name, (status, content) in HOSTILE.items()
        if name not in RERANK_ONLY
    },
    "two queries for three documents": (422, score_body(query=["red", "blue"])),
    "four queries for three documents": (422, score_body(query=["red"] * 4)),
    "an empty list of queries": (422, score_body(query=[])),
    "a blank query among three": (422, score_body(query=["red", " ", "blue"])),
    "a null query among three": (400, score_body(query=["red", None, "blue"])),
    "queries and text_1": (400, score_body(text_1="red door")),
    "documents and text_2": (400, score_body(text_2="red door")),
    "text_2 is a number": (400, score_body(documents=None, text_2=3)),
    "items are objects": (400, score_body(documents=None, items=[{"text": "red door"}])),
    "use_activation is a string": (400, score_body(use_activation="no")),
}
