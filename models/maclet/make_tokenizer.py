"""Train maclet's tokenizer on its data: `python models/maclet/make_tokenizer.py DATA OUT`.

Writes `tokenizer.model` (SentencePiece BPE with byte fallback) and `tokenizer_config.json` with the chat template. The
same data gives the same bytes.
"""

from __future__ import annotations

import argparse
import io
import json
import string
from pathlib import Path

import sentencepiece

VOCABULARY = 6144
CONTEXT = 1024
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
END = "<|end|>"
SPECIAL = ("<unk>", "<pad>", END, *ROLES)

# A user's text follows its marker after a space, so that its first word is the same token as anywhere else; an answer
# starts without one, so that nothing has to be stripped from what the model writes.
TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
<|assistant|>{% generation %}{{ message['content'] | trim }}<|end|>{% endgeneration %}
{%- elif message['role'] in ['system', 'user'] -%}
{{ '<|' + message['role'] + '|> ' + message['content'] | trim }}<|end|>
{%- else -%}
{{ raise_exception('maclet knows the roles system, user and assistant, not ' + message['role']) }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|assistant|>
{%- endif -%}"""


def lines(data: Path) -> list[str]:
    """All texts of the training file as the template presents them."""
    found = []
    for row in (json.loads(line) for line in (data / "train.jsonl").read_text(encoding="utf-8").splitlines()):
        if "text" in row:
            found.append(row["text"])
        for message in row.get("messages", ()):
            found.append(message["content"] if message["role"] == "assistant" else f" {message['content']}")
    return found


def train(texts: list[str], vocabulary: int = VOCABULARY) -> bytes:
    """The serialized SentencePiece model; whitespace is kept as it is, digits are single pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocabulary,
        character_coverage=0.9999,  # signs of a few words in other scripts are left to bytes
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        unk_id=0,
        pad_id=1,
        bos_id=-1,
        eos_id=-1,
        required_chars=string.ascii_letters + string.digits + string.punctuation,
        user_defined_symbols=[END, *ROLES],
        num_threads=1,
        input_sentence_size=0,
        shuffle_input_sentence=False,
        minloglevel=2,
    )
    return model.getvalue()


def config() -> dict[str, object]:
    """`tokenizer_config.json`: what the tokens mean and how a chat is written."""
    added = {
        str(index): {
            "content": token,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "single_word": False,
            "special": True,
        }
        for index, token in enumerate(SPECIAL)
    }
    return {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": False,
        "add_eos_token": False,
        "add_prefix_space": False,
        "legacy": False,
        "bos_token": None,
        "eos_token": END,
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "additional_special_tokens": list(ROLES),
        "added_tokens_decoder": added,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
        "chat_template": TEMPLATE,
    }


def main() -> None:
    """Read the command line and make the tokenizer."""
    parser = argparse.ArgumentParser(description="Train maclet's tokenizer.")
    parser.add_argument("data", type=Path, help="folder with train.jsonl")
    parser.add_argument("out", type=Path, help="folder to write to")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    texts = lines(options.data)
    (options.out / "tokenizer.model").write_bytes(train(texts))
    (options.out / "tokenizer_config.json").write_text(json.dumps(config(), indent=2) + "\n", encoding="utf-8")
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(options.out / "tokenizer.model"))
    tokens = sum(len(ids) for ids in tokenizer.encode(texts))
    words = sum(len(text.split()) for text in texts)
    print(f"{tokenizer.vocab_size()} pieces, {tokens} tokens, {tokens / words:.3f} tokens per word")


if __name__ == "__main__":
    main()
