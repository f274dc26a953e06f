"""A llama with a few thousand weights as a GGUF file, for llama.cpp: python tests/tiny_gguf.py WEIGHTS.npz MODEL.gguf

Runs where the package `gguf` is (make gates-llama), so it imports nothing of this repository. `weights`, in the main
environment, makes the same model for transformers.
"""

from __future__ import annotations

import string
import sys
from pathlib import Path
from typing import Any

import numpy as np

UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"
SPECIAL = (UNKNOWN, BEGIN, END)
BYTES = tuple(f"<0x{number:02X}>" for number in range(256))
LETTERS = tuple(string.ascii_uppercase)
ANSWERS = ("yes", "no", *LETTERS[:8])
WORDS = ("▁", *ANSWERS, *LETTERS[8:], *string.ascii_lowercase, *string.digits, *".,:;?>[]")
VOCABULARY = (*SPECIAL, *BYTES, *WORDS)
IDS = {token: number for number, token in enumerate(VOCABULARY)}
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% if not loop.last %}{{ '\n\n' }}{% endif %}{% endfor %}"
"""Puts nothing around the messages, so that both dialects send the model the same text."""
SIZE, HEADS, LAYERS, INNER, POSITIONS, EPSILON = 64, 2, 2, 64, 8192, 1e-5
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6
"""Types of tokens in GGUF."""


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights by their names in transformers. The first dimension is the same for all tokens and is never
    added to, and lifts ANSWERS above all other tokens; which of them is likeliest depends on the prompt."""
    rng = np.random.default_rng(seed)

    def normal(rows: int, columns: int, spread: float) -> np.ndarray:
        return rng.normal(0.0, spread, (rows, columns)).astype(np.float32)

    embeddings, head = normal(len(VOCABULARY), SIZE, 1.0), np.zeros((len(VOCABULARY), SIZE), np.float32)
    embeddings[:, 0] = 4.0
    answers = [IDS[answer] for answer in ANSWERS]
    head[answers] = normal(len(answers), SIZE, 0.3)
    head[answers, 0] = 8.0
    made = {"model.embed_tokens.weight": embeddings, "lm_head.weight": head, "model.norm.weight": _ones()}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        made |= {f"{at}.input_layernorm.weight": _ones(), f"{at}.post_attention_layernorm.weight": _ones()}
        made |= {f"{at}.self_attn.{name}_proj.weight": normal(SIZE, SIZE, 0.2) for name in "qkvo"}
        made |= {f"{at}.mlp.{name}_proj.weight": normal(INNER, SIZE, 0.1) for name in ("gate", "up")}
        made[f"{at}.mlp.down_proj.weight"] = normal(SIZE, INNER, 0.1)
        made[f"{at}.self_attn.o_proj.weight"][0] = made[f"{at}.mlp.down_proj.weight"][0] = 0.0
    return made


def _ones() -> np.ndarray:
    return np.ones(SIZE, np.float32)


def write(found: dict[str, np.ndarray], file: Path) -> None:
    """The GGUF file."""
    import gguf  # pyright: ignore[reportMissingImports]

    writer: Any = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(POSITIONS)
    writer.add_embedding_length(SIZE)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(SIZE // HEADS)
    writer.add_layer_norm_rms_eps(EPSILON)
    writer.add_vocab_size(len(VOCABULARY))
    _add_tokenizer(writer)
    for name, values in found.items():
        rotated = name.endswith(("q_proj.weight", "k_proj.weight"))
        writer.add_tensor(_ggml_name(name), _interleaved(values) if rotated else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: Any) -> None:
    kinds = [_UNKNOWN, _CONTROL, _CONTROL, *[_BYTE] * len(BYTES), *[_NORMAL] * len(WORDS)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(VOCABULARY)
    writer.add_token_scores([-float(number) for number in range(len(VOCABULARY))])
    writer.add_token_types(kinds)
    writer.add_unk_token_id(IDS[UNKNOWN])
    writer.add_bos_token_id(IDS[BEGIN])
    writer.add_eos_token_id(IDS[END])
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(TEMPLATE)


def _interleaved(values: np.ndarray) -> np.ndarray:
    """Rows of query and key as llama.cpp rotates them: a dimension beside its partner, which transformers has half a
    head away."""
    return values.reshape(HEADS, 2, SIZE // HEADS // 2, SIZE).swapaxes(1, 2).reshape(SIZE, SIZE).copy()


def _ggml_name(name: str) -> str:
    parts = {
        "model.embed_tokens": "token_embd",
        "lm_head": "output",
        "model.norm": "output_norm",
        "model.layers": "blk",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for theirs, ours in parts.items():
        name = name.replace(theirs, ours)
    return name


if __name__ == "__main__":
    with np.load(sys.argv[1]) as stored:
        write(dict(stored), Path(sys.argv[2]))
