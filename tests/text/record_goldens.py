"""Write data/: small tokenizers, and the ids and texts that transformers gives with them.

Run from the repository, with the `parity` extra: python tests/text/record_goldens.py
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

DATA = Path(__file__).parent / "data"
RECORDED = (
    "byte-level tokenizer.json with bos",
    "llama tokenizer.model",
    "gemma tokenizer.json",
    "bert vocab.txt cased",
)


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    from conftest import BUILDERS
    from test_tokenizer_parity import oracle
    from text_corpus import EDGES, SENTENCES, SPECIALS

    for name in RECORDED:
        target = DATA / name.replace(" ", "_")
        with tempfile.TemporaryDirectory() as scratch:
            BUILDERS[name](Path(scratch))
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(scratch, target)
        theirs = oracle(target)
        lines = []
        for text in [*SENTENCES[::3], *EDGES, *SPECIALS]:
            ids = theirs.encode(text)
            plain = theirs.encode(text, add_special_tokens=False)
            whole, skipped = theirs.decode(ids), theirs.decode(ids, skip_special_tokens=True)
            lines.append(json.dumps([text, ids, plain, whole, skipped], separators=(",", ":")))
        (target / "goldens.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
