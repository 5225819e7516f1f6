"""The program that runs everything at the real size makes CLIP's vocabulary right, and says what is too much."""

from __future__ import annotations

import gzip

import pytest
from transformers import CLIPTokenizer

import real_size
import real_size_base


def test_the_vocabulary_is_in_the_hubs_layout(tmp_path):
    """A list of three merges, as the packed file has it: one line about it, then a merge a line."""
    merges = ["c a", "ca t</w>", "o f</w>"]
    packed = gzip.compress("\n".join(["#version: 0.2", *merges, ""]).encode())
    real_size_base.write_tokenizer(packed, tmp_path / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path, subfolder="tokenizer")
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("a cat Of").input_ids)
    assert tokens == ["<|startoftext|>", "a</w>", "cat</w>", "of</w>", "<|endoftext|>"]
    assert tokenizer.model_max_length == 77 and sorted(path.name for path in (tmp_path / "tokenizer").iterdir()) == [
        "merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json",
    ]  # fmt: skip
    assert real_size_base.byte_characters()[:2] == ["!", '"'] and len(set(real_size_base.byte_characters())) == 256


class Quick(real_size.RealSize):
    def steps(self):
        return {"first": (lambda: None, 1), "second": (lambda: None, 1)}


def test_too_much_memory_or_time_is_said(tmp_path):
    work = Quick("small", tmp_path, None)
    assert [row["step"] for row in real_size.run_all(work, 1e9, 1e9)] == ["first", "second"]
    with pytest.raises(real_size.Failed, match="minutes, of at most 0"):
        real_size.run_all(work, 1e9, 0)
    with pytest.raises(real_size.Failed, match="There are .* needed: make room first"):
        real_size.require_room("sd14", tmp_path, disk_gb=1e9)


def test_a_program_that_fails_is_told_with_its_last_words(tmp_path):
    work = Quick("small", tmp_path, None)
    with pytest.raises(real_size.Failed, match="(?s)ended with 3:.*last words"):
        work.run([real_size.sys.executable, "-c", "print('last words'); raise SystemExit(3)"], tmp_path, tmp_path)
