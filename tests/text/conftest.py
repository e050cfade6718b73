from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from text_corpus import SENTENCES

TRAINING = [*SENTENCES, *SENTENCES, *(word for text in SENTENCES for word in text.split())]
IM = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}


def write(folder: Path, name: str, value: object) -> None:
    (folder / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def train_byte_level(special: list[str], size: int = 700):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TRAINING, trainer)
    return tokenizer


def train_pieces(prefix: Path, **options: object) -> None:
    import sentencepiece

    settings = {
        "vocab_size": 700,
        "character_coverage": 0.98,
        "minloglevel": 2,
        "hard_vocab_limit": False,
        "num_threads": 1,
    } | options
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TRAINING), model_prefix=str(prefix), **settings)


LLAMA_PIECES = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
    "split_digits": True,
    "vocab_size": 900,
}
LLAMA_CONFIG = {
    "tokenizer_class": "LlamaTokenizer",
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "legacy": False,
    "clean_up_tokenization_spaces": False,
}


def byte_level_json(folder: Path) -> None:
    """As Qwen and Llama 3 ship: byte-level tokenizer.json, tokens of the chat template added."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    tokenizer = train_byte_level(["<|endoftext|>"])
    split = r"(?i:'s|'t|'ll)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens(["<tool>", "</tool>"])
    tokenizer.enable_truncation(max_length=5)
    tokenizer.enable_padding(length=32)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    config["extra_special_tokens"] = ["<|new_in_config|>"]
    write(folder, "tokenizer_config.json", config)


def byte_level_bos_json(folder: Path) -> None:
    """As Llama 3 ships: a template processor that adds the begin token."""
    from tokenizers import processors

    tokenizer = train_byte_level(["<s>", "</s>", "<|im_start|>", "<|im_end|>"])
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]),
        ]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    decoder = {"0": {"content": "<s>", **IM}, "1": {"content": "</s>", **IM}, "2": {"content": "<|im_start|>", **IM}}
    decoder["700"] = {"content": "<tool>", **IM, "special": False, "lstrip": True, "rstrip": True}
    config = {"tokenizer_class": "TokenizersBackend", "bos_token": "<s>", "eos_token": "</s>"}
    write(folder, "tokenizer_config.json", {**config, "added_tokens_decoder": decoder})


def gpt2(folder: Path) -> None:
    train_byte_level(["<|endoftext|>"]).model.save(str(folder))
    write(folder, "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 1024})


def gpt2_with_bos(folder: Path) -> None:
    train_byte_level(["<|endoftext|>"]).model.save(str(folder))
    config = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "add_prefix_space": True}
    write(folder, "tokenizer_config.json", config)


def roberta(folder: Path) -> None:
    train_byte_level(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]).model.save(str(folder))
    mask = {"content": "<mask>", **IM, "lstrip": True, "__type": "AddedToken"}
    config = {"tokenizer_class": "RobertaTokenizer", "mask_token": mask}
    write(folder, "tokenizer_config.json", config)


def qwen2_files(folder: Path) -> None:
    train_byte_level(["<|endoftext|>"]).model.save(str(folder))
    decoder = {"700": {"content": "<|im_start|>", **IM}, "701": {"content": "<|im_end|>", **IM}}
    config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "added_tokens_decoder": decoder}
    write(folder, "tokenizer_config.json", config)


def llama(folder: Path, **changes: object) -> None:
    train_pieces(folder / "tokenizer", **LLAMA_PIECES, user_defined_symbols=["<tool>", "</tool>"])
    (folder / "tokenizer.vocab").unlink()
    write(folder, "tokenizer_config.json", {**LLAMA_CONFIG, **changes})


def llama_legacy(folder: Path) -> None:
    decoder = {"900": {"content": "<|im_start|>", **IM}, "901": {"content": "<|im_end|>", **IM}}
    llama(folder, legacy=True, add_eos_token=True, added_tokens_decoder=decoder)


def llama_without_prefix(folder: Path) -> None:
    llama(folder, add_prefix_space=False)


def llama_json(folder: Path) -> None:
    """As Llama 2 and Mistral ship: BPE with byte fallback, spaces replaced by the normalizer."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    llama(folder)
    merges, vocab = pieces_as_bpe(folder / "tokenizer.model")
    (folder / "tokenizer.model").unlink()
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in ("<unk>", "<s>", "</s>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    write(folder, "tokenizer_config.json", {**LLAMA_CONFIG, "tokenizer_class": "PreTrainedTokenizerFast"})


def pieces_as_bpe(path: Path) -> tuple[list[tuple[str, str]], dict[str, int]]:
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    vocab = {model.id_to_piece(i): i for i in range(model.get_piece_size())}
    merges = [
        (vocab[whole], vocab[whole[:cut]], vocab[whole[cut:]], whole[:cut], whole[cut:])
        for whole in vocab
        for cut in range(1, len(whole))
        if whole[:cut] in vocab and whole[cut:] in vocab
    ]
    return [(left, right) for *_, left, right in sorted(merges)], vocab


def gemma_json(folder: Path) -> None:
    """As Gemma ships: no space before the text, spaces kept, byte fallback."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    ids = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "bos_piece": "<bos>", "eos_piece": "<eos>"}
    train_pieces(folder / "tokenizer", **LLAMA_PIECES, **ids, add_dummy_prefix=False, user_defined_symbols=["<mask>"])
    merges, vocab = pieces_as_bpe(folder / "tokenizer.model")
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    tokenizer.add_special_tokens(["<pad>", "<eos>", "<bos>", "<unk>"])
    tokenizer.add_tokens(["<mask>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    for name in ("tokenizer.model", "tokenizer.vocab"):
        (folder / name).unlink()
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True, "clean_up_tokenization_spaces": False}
    write(folder, "tokenizer_config.json", config | names)


def gemma_model(folder: Path) -> None:
    ids = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "bos_piece": "<bos>", "eos_piece": "<eos>"}
    train_pieces(folder / "tokenizer", **LLAMA_PIECES, **ids, add_dummy_prefix=False, user_defined_symbols=["<mask>"])
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    write(folder, "tokenizer_config.json", {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True} | names)


def t5(folder: Path) -> None:
    train_pieces(folder / "spiece", model_type="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    (folder / "spiece.vocab").unlink()
    write(folder, "tokenizer_config.json", {"tokenizer_class": "T5Tokenizer", "extra_ids": 100})


def t5_json(folder: Path) -> None:
    """As T5 ships: Unigram tokenizer.json."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    special = ["<pad>", "</s>", "<unk>", "<extra_id_1>", "<extra_id_0>"]
    trainer = trainers.UnigramTrainer(vocab_size=600, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(TRAINING, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "pad_token": "<pad>"}
    write(folder, "tokenizer_config.json", {**config, "unk_token": "<unk>", "clean_up_tokenization_spaces": True})


def wordpiece_vocab() -> list[str]:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=900, special_tokens=special, show_progress=False)
    lower = [text.lower() for text in TRAINING]
    tokenizer.train_from_iterator([*TRAINING, *lower], trainer)
    return sorted(tokenizer.get_vocab(), key=lambda token: tokenizer.get_vocab()[token])


def bert(folder: Path, **config: object) -> None:
    (folder / "vocab.txt").write_text("\n".join(wordpiece_vocab()) + "\n", encoding="utf-8")
    write(folder, "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", **config})


def bert_cased(folder: Path) -> None:
    bert(folder, do_lower_case=False, clean_up_tokenization_spaces=True)


def bert_bare(folder: Path) -> None:
    (folder / "vocab.txt").write_text("\n".join(wordpiece_vocab()) + "\n", encoding="utf-8")
    write(folder, "config.json", {"model_type": "bert"})


def marian(folder: Path) -> None:
    for side in ("source", "target"):
        train_pieces(folder / side, model_type="unigram", vocab_size=600, bos_id=-1)
        (folder / f"{side}.model").rename(folder / f"{side}.spm")
    pieces = [line.split("\t")[0] for line in (folder / "source.vocab").read_text("utf-8").splitlines()]
    order = ["</s>", "<unk>", *(p for p in pieces if p not in ("</s>", "<unk>")), ">>fra<<", "<pad>"]
    write(folder, "vocab.json", {piece: index for index, piece in enumerate(order)})
    for side in ("source", "target"):
        (folder / f"{side}.vocab").unlink()
    write(folder, "tokenizer_config.json", {"tokenizer_class": "MarianTokenizer", "source_lang": "eng"})


BUILDERS: dict[str, Callable[[Path], None]] = {
    "byte-level tokenizer.json": byte_level_json,
    "byte-level tokenizer.json with bos": byte_level_bos_json,
    "llama tokenizer.json": llama_json,
    "gemma tokenizer.json": gemma_json,
    "t5 tokenizer.json": t5_json,
    "gpt2 vocab.json": gpt2,
    "gpt2 vocab.json with bos": gpt2_with_bos,
    "roberta vocab.json": roberta,
    "qwen2 vocab.json": qwen2_files,
    "llama tokenizer.model": llama,
    "llama tokenizer.model legacy": llama_legacy,
    "llama tokenizer.model without prefix": llama_without_prefix,
    "gemma tokenizer.model": gemma_model,
    "t5 spiece.model": t5,
    "bert vocab.txt": bert,
    "bert vocab.txt cased": bert_cased,
    "bert vocab.txt bare": bert_bare,
    "marian": marian,
}


class Folders:
    """Tokenizer folders by name, each built at its first use in the session."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __getitem__(self, name: str) -> Path:
        folder = self._root / name.replace(" ", "_")
        if not folder.exists():
            folder.mkdir()
            BUILDERS[name](folder)
        return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory.mktemp("tokenizers"))


@pytest.fixture(scope="session", params=BUILDERS)
def folder(request: pytest.FixtureRequest, folders: Folders) -> Path:
    return folders[request.param]
