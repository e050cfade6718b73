"""Every objective with its proof: loss and all gradients beside a reference, and learning.

The differences are those of the parity tests, run anew; what is learned comes from the scripts in `tests/learning`,
whose last line is JSON with `objectives`: by name a text, `shown`, and a verdict, `held`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.tables.table import Say, Table
from tests.tables.twins import GRADIENT, LOSS

REPOSITORY = Path(__file__).resolve().parents[2]
LEARNING = REPOSITORY / "tests" / "learning"
_FIRST, _LAST = ("pretraining", "passkey"), ("constitution",)  # scripts of many minutes; the last one keeps all cores
_AT_ONCE = 2  # scripts, most of which keep one core busy
TESTS = ("tests/train/objectives", "tests/tables/test_gradients.py")


@dataclass(frozen=True)
class Proof:
    """The reference of an objective, and a pattern of the tests that compare with it."""

    oracle: str
    tests: str


PROOFS = {
    "clm": Proof("transformers", r"test_gradients"),
    "sft": Proof("transformers, PEFT", r"test_gradients"),
    "mlm": Proof("transformers", r"test_pretraining_parity.*masked_lm"),
    "span": Proof("transformers", r"test_pretraining_parity.*text_to_text"),
    "infill": Proof("transformers", r"test_pretraining_parity.*text_to_text"),
    "seq2seq": Proof("transformers", r"test_pretraining_parity.*text_to_text"),
    "clm with experts": Proof("transformers, torch", r"test_experts"),
    "orpo": Proof("TRL", r"test_preferences.*\[orpo"),
    "simpo": Proof("TRL", r"test_preferences.*\[simpo"),
    "dpo": Proof("TRL", r"test_dpo"),
    "kto": Proof("TRL", r"test_kto"),
    "reward": Proof("TRL", r"test_labels_parity.*reward"),
    "classify": Proof("transformers", r"test_labels_parity.*classif"),
    "tag": Proof("transformers", r"test_labels_parity.*tag"),
    "distil": Proof("torch, TRL", r"test_distil"),
    "grpo": Proof("TRL", r"test_grpo"),
    "ppo": Proof("torch", r"test_ppo"),
}


def measured(tests: Sequence[str], say: Say) -> list[dict[str, Any]]:
    """The differences that the parity tests measure."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "differences.jsonl"
        options = ["-q", "-m", "parity", "-p", "tests.tables.differences", "--differences", str(path), "-W", "ignore"]
        command = [sys.executable, "-m", "pytest", *options, *tests]
        with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                say(line.rstrip())
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def learned(scripts: Iterable[Path], say: Say) -> dict[str, dict[str, Any]]:
    """The findings of the scripts, by objective; two scripts run at once. One that fails shows nothing."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = list(pool.map(lambda script: _learned(script, say), scripts))
    return {name: finding for each in found for name, finding in each.items()}


def _learned(script: Path, say: Say) -> dict[str, dict[str, Any]]:
    say(f"learning: {script.stem}")
    command = [sys.executable, "-m", f"tests.learning.{script.stem}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        return {script.stem: {"shown": (done.stderr.strip().splitlines() or ["no output"])[-1], "held": False}}
    return json.loads(done.stdout.strip().splitlines()[-1])["objectives"]


def is_held(difference: dict[str, Any]) -> bool:
    """True within the limits. A test that passes with another difference has put a known bug back."""
    return difference["loss"] <= LOSS and difference["gradient"] <= max(GRADIENT, difference["own_gradient"])


def table(quick: bool, say: Say) -> Table:
    """The worst differences of each objective, and learning; `quick` measures few, without learning."""
    tests = ("tests/train/objectives/test_preferences.py",) if quick else TESTS
    differences = measured(tests, say)
    scripts = [path for path in LEARNING.glob("[!_]*.py") if not path.stem.startswith("test_")]
    scripts.sort(key=lambda path: (path.stem in _LAST, path.stem not in _FIRST, path.stem))
    shown = {} if quick else learned(scripts, say)
    rows, held = list[list[str]](), list[bool]()
    for name, proof in PROOFS.items():
        own = [each for each in differences if re.search(proof.tests, each["test"])]
        passed = [each for each in own if "failed" not in each]
        close = [each for each in passed if is_held(each)]
        if quick and not own:
            continue
        learning = shown.pop(name, {"shown": "", "held": None})
        held += [bool(close) and len(passed) == len(own), learning["held"] is not False]
        rows.append(
            [
                name,
                proof.oracle,
                str(len(close)),
                f"{max((each['loss'] for each in close), default=0):.1e}",
                f"{max((each['gradient'] for each in close), default=0):.1e}",
                f"{len(passed) - len(close)} seen" if len(passed) > len(close) else "",
                learning["shown"] if held[-2] else "a test failed",
            ]
        )
    for name, learning in shown.items():  # of what has no loss of its own
        held.append(learning["held"] is not False)
        rows.append([name, "", "", "", "", "", learning["shown"]])
    return Table(
        "Every objective: its loss and all gradients beside a reference, and what is learned by it",
        ["objective", "reference", "comparisons", "loss", "gradients", "bugs put back", "learned"],
        rows,
        f"in float32 {LOSS:.0e} of the reference's loss in float64, and {GRADIENT:.0e} of each tensor's largest "
        "gradient, or what the reference in float32 differs by; what is learned as each script says",
        None if quick else all(held),
        {"differences": differences},
    )
