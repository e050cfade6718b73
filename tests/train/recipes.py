"""A recipe for `macllm train`: config.json, a byte tokenizer with a template, rows of sums and pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}


def chat(question: str, answer: str) -> str:
    """One row."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages}) + "\n"


def write_recipe(folder: Path, **changes: Any) -> None:
    """Write the files of a recipe, its config.json with `changes`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<end>", "<user>", "<assistant>"]
    tokenizer = FastTokenizer(models.BPE(vocab={c: i for i, c in enumerate(special + alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<end>", "chat_template": TEMPLATE, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    rows = [chat(f"{a}+{b}", str(a + b)) for a in range(5) for b in range(4)]
    (folder / "train.jsonl").write_text("".join(rows))
    (folder / "valid.jsonl").write_text("".join(rows[::5]))
    (folder / "fact.jsonl").write_text(chat("who", "me") * 4 + chat("1+1", "2") * 4)
    pairs = [
        {"prompt": f"{a}+{b}", "chosen": str(a + b), "rejected": str(a * b + 7)} for a in range(4) for b in range(4)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    prompts = [{"prompt": pair["prompt"], "answer": pair["chosen"]} for pair in pairs]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    (folder / "recipe.toml").write_text(
        'data = "."\nconfig = "config.json"\ntokenizer = "."\niters = 6\nbatch_size = 4\n'
        "max_seq_length = 32\nsteps_per_report = 2\nsteps_per_eval = 3\nsave_every = 2\nlearning_rate = 0.01\n"
    )


ENCODER = {
    "model_type": "bert",
    "architectures": ["BertForMaskedLM"],
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 48,
    "type_vocab_size": 2,
    "vocab_size": 280,
}
TEXT_TO_TEXT = {
    "model_type": "t5",
    "architectures": ["T5ForConditionalGeneration"],
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 2,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "decoder_start_token_id": 1,
    "vocab_size": 280,
}
SENTINELS = 10


def write_text_tokenizer(folder: Path) -> None:
    """Write a byte tokenizer with a mask token, sentinels of descending ids, and <s>, </s> around texts."""
    special = ["<s>", "<pad>", "</s>", "<mask>", *(f"<extra_id_{n}>" for n in reversed(range(SENTINELS)))]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = FastTokenizer(models.BPE(vocab={c: i for i, c in enumerate(special + alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**settings, "tokenizer_class": "PreTrainedTokenizerFast"})
    )


def write_texts(folder: Path) -> None:
    """Write a tokenizer, texts of two sentences, pairs of a word and its reverse, an encoder and a T5."""
    write_text_tokenizer(folder)
    words = ["abcd", "bead", "face", "cafe", "deaf", "fade", "dead", "beef"]
    texts = [{"text": f"{a} {b}. {b} {a}."} for a in words for b in words[:3]]
    pairs = [{"source": word, "target": word[::-1]} for word in words]
    for name, rows in (("texts", texts), ("words", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, config in (("encoder", ENCODER), ("t5", TEXT_TO_TEXT)):
        (folder / f"{name}.json").write_text(json.dumps(config))
