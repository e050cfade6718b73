"""From the texts in `data/` to a new maclet, in one command that can be resumed.

`python models/maclet/remake.py`
makes the data and the tokenizer, trains by `recipe.toml` and then `second.toml`, examines the result, and writes
`report.md` with the curves.
Stopped at any moment, the same command goes on where it stopped. With `--bundle` the result replaces the bundled model
and the section of the card between its marks, if the goals are met and all of it is at most 16 MB.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from macllm_models.maclet import bundle, exam, make_data, make_tokenizer
from macllm_models.making import curves, trained, written

HOME = Path(__file__).parent
MOST_BYTES = 16 * 10**6


def prepare(build: Path, conversations: int | None = None) -> None:
    """Data of both stages and tokenizer in `build`, unless they are there."""
    done = build / "tokenizer" / "tokenizer_config.json"
    if done.exists():
        return
    make_data.make(build, conversations=conversations)
    make_data.make(build / "second", 1, conversations, make_data.SECOND)
    texts = make_tokenizer.lines(build)
    done.parent.mkdir(parents=True, exist_ok=True)
    (done.parent / "tokenizer.model").write_bytes(make_tokenizer.train(texts))
    done.write_text(json.dumps(make_tokenizer.config(), indent=2) + "\n", encoding="utf-8")


def train(build: Path, settings: Sequence[str]) -> Path:
    """Begin both stages or go on with them; return the trained model's folder."""
    places = [f"data={build}", f"tokenizer={build / 'tokenizer'}", f"output={build / 'run'}"]
    model = trained("train", HOME / "recipe.toml", build / "run", [*places, *settings])
    run = build / "second" / "run"
    places = [f"data={build / 'second'}", f"model={model}", f"adapter_path={run}"]
    return trained("finetune", HOME / "second.toml", run, places)


def install(build: Path, measured: str, home: Path = HOME) -> None:
    """Put the trained model, its config, its tokenizer and the measured part of the card into `home`.

    Raises: ValueError if the folder would be larger than 16 MB; nothing is changed then.
    """
    weights = (build / "second" / "run" / "model" / "model.safetensors").stat().st_size // 2  # float16 of float32
    others = sum(path.stat().st_size for path in home.rglob("*") if path.is_file() and path.suffix != ".safetensors")
    if weights + others > MOST_BYTES:
        raise ValueError(f"maclet would take {(weights + others) / 1e6:.1f} MB, more than {MOST_BYTES / 1e6:.0f}")
    card = written((home / "card.md").read_text(encoding="utf-8"), measured)
    shutil.copy(HOME / "shape.json", home / "config.json")
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(build / "tokenizer" / name, home / name)
    bundle.bundle(build / "second" / "run" / "model", home)
    (home / "card.md").write_text(card, encoding="utf-8")


def main() -> int:
    """Read the command line and make maclet."""
    parser = argparse.ArgumentParser(description="Make maclet from its texts.")
    parser.add_argument("--build", type=Path, default=Path("build/maclet"), help="folder to work in")
    parser.add_argument("--conversations", type=int, help="fewer of each stage make a trial run")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the first stage")
    parser.add_argument("--bundle", action="store_true", help="replace the bundled model if the goals are met")
    options = parser.parse_args()
    build = options.build.absolute()
    prepare(build, options.conversations)
    model = train(build, options.set)
    rows, marked = exam.examine(str(model), build / "train.jsonl")
    answers = "".join(f"{json.dumps(asdict(each))}\n" for each in marked)
    (build / "answers.jsonl").write_text(answers, encoding="utf-8")
    drawn = [curves(folder / "run" / "metrics.jsonl") for folder in (build, build / "second")]
    measured = "\n\n".join([exam.table(rows), "First stage:", drawn[0], "Second stage:", drawn[1]])
    (build / "report.md").write_text(measured + "\n", encoding="utf-8")
    print(measured)
    missed = [row["set"] for row in rows if row["goal"] and row["rate"] < row["goal"]]
    if missed:
        print(f"below the goal: {', '.join(missed)}; the bundled model stays", file=sys.stderr)
    elif options.bundle:
        install(build, measured)
    return int(bool(missed))


if __name__ == "__main__":
    raise SystemExit(main())
