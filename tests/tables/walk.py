"""Fine-tuning from rows to peers, as a user does it: `python -m tests.tables.walk [--iters N]`.

1,000 rows of chat; a run that nothing stops; another on a terminal, killed with SIGKILL in the middle and resumed; its
adapter in `macllm chat`, in PEFT and in mlx-lm. Prints a line for each thing that it saw; the exit code is 1 if one is
not as it should be. Needs the extra `parity`, and Linux or macOS.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.tables.kills import environment

ROWS = 1000
QUESTION = "Which word follows 17?"
TERMINAL = {"loss": r"loss \d", "time left": r"\d \w+ left", "memory": r"\d (?:MB|GB)", "steps": r"\d+/\d+"}
TIMEOUT = 900


class Walk:
    """The folder, the model, and what was seen."""

    def __init__(self, folder: Path, model: str, iters: int) -> None:
        self.folder, self.model, self.iters = folder, model, iters
        self.missed: list[str] = []
        self.data = folder / "rows.jsonl"
        words = ["amber", "birch", "cedar", "dune", "ember", "fjord", "grove", "heath", "inlet", "jetty"]
        with self.data.open("w", encoding="utf-8") as file:
            for number in range(ROWS):
                asked = {"role": "user", "content": f"Which word follows {number}?"}
                answer = {"role": "assistant", "content": f"The word after {number} is {words[number % 10]}."}
                file.write(json.dumps({"messages": [asked, answer]}) + "\n")

    def saw(self, claim: str, held: bool, detail: object = "") -> None:
        """Print a claim and what was seen of it."""
        print(f"{'ok    ' if held else 'MISSED'} {claim}{f': {detail}' if detail != '' else ''}", flush=True)
        self.missed += [] if held else [claim]

    def finetune(self, name: str, *more: str) -> list[str]:
        """The command line of a run."""
        place = ["--adapter-path", str(self.folder / name)]
        if "--resume" not in more:
            settings = ["--iters", str(self.iters), "--learning-rate", "1e-3", "--valid-fraction", "0.05"]
            settings += ["--set", "save_every=10", "--set", "steps_per_eval=20", "--set", "steps_per_report=5"]
            place += ["--model", self.model, "--data", str(self.data), *settings]
        return [sys.executable, "-m", "macllm", "finetune", "--lora", *place, *more]

    def run(self, command: list[str], **more: Any) -> subprocess.CompletedProcess[str]:
        """A process to its end. Raises: CalledProcessError, its errors printed."""
        done = subprocess.run(
            command, env=environment(self.folder), capture_output=True, text=True, timeout=TIMEOUT, **more
        )
        if done.returncode:
            print(done.stderr[-2000:], file=sys.stderr)
        done.check_returncode()
        return done

    def killed(self, name: str) -> str:
        """Train on a terminal, and kill all processes of the run in the middle; what the terminal showed."""
        ours, theirs = os.openpty()
        variables = {**environment(self.folder), "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}
        run = subprocess.Popen(
            self.finetune(name), env=variables, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)
        shown, metrics, began = b"", self.folder / name / "metrics.jsonl", time.monotonic()
        while time.monotonic() - began < TIMEOUT and run.poll() is None:
            try:
                shown += os.read(ours, 65536)
            except OSError:
                break
            steps = [json.loads(line).get("step") or 0 for line in lines(metrics) if '"Step"' in line]
            if max(steps, default=0) >= self.iters // 2:
                os.killpg(run.pid, signal.SIGKILL)
                break
        run.wait(timeout=60)
        os.close(ours)
        self.saw("SIGKILL ends a run in the middle", run.returncode == -signal.SIGKILL, run.returncode)
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode(errors="replace"))

    def chat(self, *more: str) -> str:
        """The answer of `macllm chat` to the question, without randomness."""
        command = [sys.executable, "-m", "macllm", "chat", "--temporary", "--temperature", "0", "--max-tokens", "24"]
        return self.run([*command, "--model", self.model, *more, QUESTION]).stdout.strip()


def lines(path: Path) -> list[str]:
    """The whole lines of a file that is being written; none if it is missing."""
    return path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []


def digest(folder: Path) -> str:
    """Of an adapter's weights."""
    return hashlib.sha256((folder / "adapters.safetensors").read_bytes()).hexdigest()[:16]


def peers(walk: Walk, name: str) -> None:
    """Compare logits with the adapter: ours, PEFT's and mlx-lm's."""
    import mlx.core as mx
    import torch
    from mlx_lm.utils import load_adapters, load_model
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    import macllm
    from macllm import adapter, hub
    from macllm.ops.quantized import using_activations

    base, folder = Path(hub.resolve(walk.model)), walk.folder / name
    model, tokenizer = macllm.load(walk.model, dtype=mx.float32)
    tokens = tokenizer.encode(tokenizer.render([{"role": "user", "content": QUESTION}]), add_special_tokens=False)
    with using_activations("float"):
        plain = np.array(model(mx.array([tokens])).astype(mx.float32))
        adapter.attach(model, folder)
        ours = np.array(model(mx.array([tokens])).astype(mx.float32))
    effect = float(np.abs(ours - plain).max())
    exported = ["--form", "peft", "--output", str(walk.folder / "peft"), str(folder)]
    walk.run([sys.executable, "-m", "macllm", "adapters", "export", *exported])
    oracle = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(oracle, str(walk.folder / "peft"))(torch.tensor([tokens])).logits
    other: Any = load_model(base)[0]
    other.set_dtype(mx.float32)
    other = load_adapters(other, str(folder))
    found = {"PEFT": theirs.detach().numpy(), "mlx-lm": np.array(other(mx.array([tokens])).astype(mx.float32))}
    for peer, logits in found.items():
        difference = float(np.abs(logits - ours).max())
        walk.saw(
            f"{peer} gives the logits of macllm with the adapter",
            difference <= 1e-3 * effect,
            f"{difference:.1e} apart, the adapter changes {effect:.1f}",
        )


def main(arguments: list[str]) -> int:
    """Walk; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.tables.walk", description="A user's fine-tuning.")
    parser.add_argument("--model", default="maclet")
    parser.add_argument("--iters", type=int, default=120)
    parser.add_argument("--folder", type=Path, help="an empty folder; a temporary one by default")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        walk = Walk(options.folder or Path(temporary), options.model, options.iters)
        walk.run(walk.finetune("whole"))
        shown = walk.killed("stopped")
        for what, pattern in TERMINAL.items():
            seen = re.findall(f".*{pattern}.*", shown)
            walk.saw(f"the terminal shows {what}", bool(seen), seen[-1].strip()[:160] if seen else "")
        walk.run(walk.finetune("stopped", "--resume"))
        ends = [digest(walk.folder / name) for name in ("whole", "stopped")]
        walk.saw("resuming ends at the adapter of the run that nothing stopped", ends[0] == ends[1], ends)
        plain, adapted = walk.chat(), walk.chat("--adapter", str(walk.folder / "stopped"))
        walk.saw(
            "the adapter answers as its rows", adapted.startswith("The word after"), f"{plain!r} becomes {adapted!r}"
        )
        peers(walk, "stopped")
    return int(bool(walk.missed))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
