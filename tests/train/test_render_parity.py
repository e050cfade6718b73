"""Loss masks compared with transformers' and TRL's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from macllm.text.tokenizer import Tokenizer
from macllm.train.render import Example, to_examples
from macllm.train.rows import Chat, parse

pytestmark = pytest.mark.parity

SPECIAL = [
    *("<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|observation|>", "<|end|>"),
    *("<|endoftext|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<end_of_turn>", "<start_of_turn>"),
]
ENDS = ["<|im_end|>", "<|user|>", "<|observation|>", "<|end|>", "<|endoftext|>", "<|eot_id|>", "<end_of_turn>", "</s>"]
CHATML = (
    "{%- for m in messages -%}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant{{ '\\n' }}{%- endif -%}"
)
MESSAGES = [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "First."},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "\n Second. é中\U0001f600"},
]
# The templates of text models among TRL's, with the same turns whether they mark answers or not.
SAME = ["cohere", "glm4moe", "lfm2", "llama3", "qwen2_5", "qwen3_instruct_2507"]
MARKED = [*SAME, "deepseekv3", "gemma3", "gptoss", "muse_glimmer", "nemotron_3_nano", "phi3", "phi3_5", "qwen3"]


def checkpoint(folder: Path, template: str | None, around: str = "", add_eos: str = "<|im_end|>") -> Path:
    """A byte-level tokenizer whose merges cross bounds, and whose offsets leave out white space."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers, processors

    merges = [("Ċ", "Ċ"), ("Ġ", "S"), (".", "Ċ"), ("Ċ", "F")]
    words = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    tokenizer = Library(models.BPE({word: at for at, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    if around:
        ids = [(name, SPECIAL.index(name)) for name in ("<s>", "</s>")]
        tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=ids)
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": add_eos, "bos_token": "<s>"}
    config |= {"pad_token": "<pad>", **({} if template is None else {"chat_template": template})}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [SPECIAL.index(end) for end in ENDS]}))
    return folder


def trl_template(name: str) -> str:
    import trl

    return (Path(trl.__path__[0]) / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def learned(folder: Path, row: Any) -> list[Example]:
    return to_examples(parse(row, "f:1"), Tokenizer.from_folder(folder), mask_prompt=True)


@pytest.mark.parametrize("name", MARKED)
def test_masks_of_marked_templates_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    checkpoint(tmp_path, trl_template(f"{name}_training"))
    theirs = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
        MESSAGES, return_dict=True, return_assistant_tokens_mask=True
    )
    (ours,) = learned(tmp_path, {"messages": MESSAGES})
    assert ours.tokens.tolist() == theirs["input_ids"]
    assert ours.loss_mask.astype(int).tolist() == theirs["assistant_masks"]


@pytest.mark.parametrize("name", SAME)
def test_answers_of_unmarked_templates_are_those_that_trl_marks(name: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(checkpoint(tmp_path, trl_template(f"{name}_training")))
    made = theirs.apply_chat_template(MESSAGES, return_dict=True, return_assistant_tokens_mask=True)
    marked = theirs.decode([i for i, on in zip(made["input_ids"], made["assistant_masks"], strict=True) if on])
    ours = to_examples(
        Chat(MESSAGES, None, "f:1"), Tokenizer.from_folder(checkpoint(tmp_path, trl_template(name))), mask_prompt=True
    )
    assert "".join(theirs.decode(each.tokens[each.loss_mask]) for each in ours).split() == marked.split()


def test_the_marker_that_ends_an_answer_is_that_of_the_message_which_follows_it(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(checkpoint(tmp_path, trl_template("glm4moe")))

    def supervised(*answers: dict[str, Any]) -> list[str]:
        turns = [turn for each in answers for turn in (MESSAGES[0], {"role": "assistant", **each})]
        made = to_examples(parse({"messages": turns}, "f:1"), tokenizer, mask_prompt=True)
        return [tokenizer.decode(each.tokens[each.loss_mask].tolist()) for each in made]

    # reasoning of old answers is left out, so that each answer is an example
    assert supervised(*({"content": text, "reasoning_content": "Hm."} for text in ("One.", "Two."))) == [
        "\n<think>Hm.</think>\nOne.<|user|>",
        "\n<think>Hm.</think>\nTwo.<|user|>",
    ]
    call = {"function": {"name": "now", "arguments": {}}}
    for reasoning in ({}, {"reasoning_content": "Hm."}):
        (text,) = supervised({"content": None, "tool_calls": [call], **reasoning})
        assert text.endswith("</tool_call><|observation|>")


ROWS = [
    {"prompt": MESSAGES[:3], "completion": MESSAGES[3:]},
    {"prompt": MESSAGES[:1], "completion": MESSAGES[1:2]},
    {"prompt": "Q: 2+2=", "completion": "4"},
    {"prompt": "One", "completion": " Second"},
    {"prompt": "Line.", "completion": "\nFour"},  # merged across the bound
    {"text": "One. Two."},
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row)[:40])
def test_labels_equal_those_of_trl(row: dict[str, Any], tmp_path: Path) -> None:
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    chats = not any(isinstance(value, str) for value in row.values())
    checkpoint(tmp_path, CHATML if chats else None, "" if chats else "<s> $A")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                    num_attention_heads=1, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    )  # fmt: skip
    settings = SFTConfig(output_dir=str(tmp_path / "out"), report_to=[], use_cpu=True, bf16=False)
    trainer = SFTTrainer(model, args=settings, train_dataset=Dataset.from_list([row]), processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    (ours,) = learned(tmp_path, row)
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    assert ours.tokens.tolist() == ids[: len(ours)]
    # TRL also learns the line break after an answer, which is never generated.
    end = len(ids) - 1 if chats else len(ids)
    theirs = [token != -100 for token in labels[:end]]
    assert ours.loss_mask[1:end].tolist() == theirs[1:]


def test_prompt_and_completion_have_the_tokens_of_one_text(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = checkpoint(tmp_path, None, "<s> $A </s>", "</s>")
    (ours,) = learned(folder, {"prompt": "Q: 2+2=", "completion": "4"})
    assert ours.tokens.tolist() == AutoTokenizer.from_pretrained(folder)("Q: 2+2=4").input_ids
    assert [int(token) for token in ours.tokens[ours.loss_mask]] == ours.tokens.tolist()[-2:]
