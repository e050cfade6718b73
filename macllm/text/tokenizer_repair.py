"""Repair of inconsistent tokenizer.json files: decoder and special ids follow the encoder.

Converters copy parts from other models: a decoder for another alphabet, a begin token with another token's id,
added tokens with ids that the library does not keep.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .decoding import byte_alphabet
from .json_data import is_list, is_object, list_in, object_in

if TYPE_CHECKING:
    import tokenizers

_PROBES = (
    "hello world",
    " two  spaces",
    "The quick brown fox, isn't it?",
    "naïve café 😀",
    "日本語\n\ttab",
)
_HEAD_BYTES = 4 << 20  # added tokens precede the vocabulary in tokenizer.json
_SPACE = "\u2581"


def repair_decoder(tokenizer: tokenizers.Tokenizer) -> None:
    """Replace a decoder that does not invert the tokenizer's pre-tokenizer, normalizer and model.

    Of the file's decoder and the derived one, the one that restores more probe texts wins; the derived one in a tie.
    """
    derived = _derived_decoder(tokenizer)
    if derived is None:
        return
    own = tokenizer.decoder
    before = _num_restored(tokenizer)
    tokenizer.decoder = derived
    if _num_restored(tokenizer) < before:
        tokenizer.decoder = own


def _num_restored(tokenizer: tokenizers.Tokenizer) -> int:
    """Number of probe texts that encoding and decoding restore, ignoring case."""
    texts = [tokenizer.decode(tokenizer.encode(probe, add_special_tokens=False).ids) for probe in _PROBES]
    return sum(text.casefold() == probe.casefold() for text, probe in zip(texts, _PROBES, strict=True))


def _derived_decoder(tokenizer: tokenizers.Tokenizer) -> Any:
    """A decoder for the tokenizer's spaces and bytes; None if its own fits or none can be derived."""
    from tokenizers import decoders

    steps = [*_steps(tokenizer.normalizer), *_steps(tokenizer.pre_tokenizer)]
    own = list(_steps(tokenizer.decoder))
    kinds = {str(step.get("type")) for step in own}
    encoder: Any = tokenizer.model
    if any(step.get("type") == "ByteLevel" for step in steps):
        return None if "ByteLevel" in kinds and kinds <= {"ByteLevel", "ByteFallback", "Fuse"} else decoders.ByteLevel()
    mark = next((mark for step in steps if (mark := _mark_of(step))), None)
    if mark is not None:
        by_bytes = bool(getattr(encoder, "byte_fallback", False))
        known = "Metaspace" in kinds or any(mark in str(step.get("pattern")) for step in own)
        if known and not kinds & {"ByteLevel", "WordPiece", "BPEDecoder"} and ("ByteFallback" in kinds or not by_bytes):
            return None
        stages: list[Any] = [decoders.Replace(mark, " "), *([decoders.ByteFallback()] if by_bytes else [])]
        stages.append(decoders.Fuse())
        if any(_prepends(step) for step in steps):
            stages.append(decoders.Strip(" ", 1, 0))
        return decoders.Sequence(stages)
    if type(encoder).__name__ == "WordPiece":
        return None if "WordPiece" in kinds else decoders.WordPiece(prefix=encoder.continuing_subword_prefix)
    suffix = getattr(encoder, "end_of_word_suffix", None)
    if suffix and "BPEDecoder" not in kinds and not any(suffix in str(step.get("pattern")) for step in own):
        return decoders.BPEDecoder(suffix=suffix)
    return None


def _steps(component: Any) -> Iterable[Mapping[str, Any]]:
    """The steps of a normalizer, pre-tokenizer, decoder or post-processor, as in tokenizer.json."""
    return _flat(json.loads(component.__getstate__())) if component is not None else ()


def _flat(state: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    if state.get("type") != "Sequence":
        return (state,)
    parts = [part for value in state.values() for part in list_in(value) if is_object(part)]
    return [step for part in parts for step in _flat(part)]


def _mark_of(step: Mapping[str, Any]) -> str | None:
    """The character that a step writes for a space, else None."""
    if step.get("type") == "Metaspace":
        return str(step.get("replacement", _SPACE))
    if step.get("type") == "Replace" and object_in(step.get("pattern")).get("String") == " ":
        return str(step.get("content")).strip() or None
    return None


def _prepends(step: Mapping[str, Any]) -> bool:
    if step.get("type") == "Metaspace":
        return step.get("prepend_scheme", "always") != "never"
    return step.get("type") == "Prepend"


def repair_special_ids(tokenizer: tokenizers.Tokenizer, id_of: Callable[[str], int | None]) -> None:
    """Correct the ids of the special tokens that the post-processor names."""
    processor: Any = tokenizer.post_processor
    if processor is None:
        return
    state = json.loads(processor.__getstate__())
    if _renumber(state, id_of):
        processor.__setstate__(json.dumps(state).encode())
        tokenizer.post_processor = processor


def _renumber(state: Mapping[str, Any], id_of: Callable[[str], int | None]) -> bool:
    """Correct the ids in a post-processor's JSON, in place; True if any was wrong."""
    wrong = False
    for step in _flat(state):
        for special in object_in(step.get("special_tokens")).values():
            right = [id_of(token) for token in special["tokens"]]
            if None not in right and right != special["ids"]:
                special["ids"] = right
                wrong = True
        for end in (step.get("sep"), step.get("cls")):  # of BertProcessing and RobertaProcessing: [text, id]
            right = id_of(end[0]) if is_list(end) else None
            if end is not None and right is not None and right != end[1]:
                end[1] = right
                wrong = True
    return wrong


def misread_tokens(tokenizer: tokenizers.Tokenizer) -> frozenset[str]:
    """Added tokens that a byte-level decoder would read as bytes: non-ASCII ones such as `<|é|>`."""
    if not any(step.get("type") == "ByteLevel" for step in _steps(tokenizer.decoder)):
        return frozenset()
    encoder: Any = tokenizer.model
    alphabet = byte_alphabet().keys()
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    mixed = [content for content in added if not content.isascii() and alphabet >= set(content)]
    return frozenset(content for content in mixed if encoder.token_to_id(content) is None)


def declared_ids(path: Path) -> dict[str, int]:
    """The added tokens of a tokenizer.json and the ids that it declares."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES).decode("utf-8", "ignore")
    start = head.find("[", head.find('"added_tokens"'))
    try:
        tokens = json.JSONDecoder().raw_decode(head, start)[0]
    except (ValueError, RecursionError):
        return {}
    pairs = [(token.get("content"), token.get("id")) for token in list_in(tokens) if is_object(token)]
    return {content: index for content, index in pairs if isinstance(content, str) and isinstance(index, int)}


def moved_ids(tokenizer: tokenizers.Tokenizer, declared: Mapping[str, int]) -> dict[int, int]:
    """Map the library's ids of added tokens to the declared ids, where these differ.

    The library numbers added tokens from the size of the vocabulary on and ignores declared ids. A declared id that
    belongs to another token is left out.
    """
    encoder: Any = tokenizer.model
    added = {token.content: index for index, token in tokenizer.get_added_tokens_decoder().items()}
    moved = {
        index: declared[content]
        for content, index in added.items()
        if 0 <= declared.get(content, index) != index and encoder.token_to_id(content) is None
    }
    while True:
        targets = list(moved.values())
        kept = {
            index: target
            for index, target in moved.items()
            if targets.count(target) == 1 and (target in moved or tokenizer.id_to_token(target) is None)
        }
        if kept == moved:
            return moved
        moved = kept
