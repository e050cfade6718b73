"""From the texts of maclet to a small sibling of it, in one command that can be resumed.

`python models/siblings/remake.py NAME`
makes data and tokenizer, trains by the recipes in the folder NAME, measures on held-out rows, and writes `report.md`
with the curves.
Stopped at any moment, the same command goes on where it stopped. With `--bundle` the result replaces the bundled one
and the section of its card between the marks, if its folder is at most 2 MB.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from macllm_models.maclet import bundle
from macllm_models.making import curves, trained, written
from macllm_models.siblings import chats, correction, masked, routing, spelling

HOME = Path(__file__).parent
MOST_BYTES = 2 * 10**6  # of a sibling's folder
_STAGES = {"recipe.toml": "First", "second.toml": "Second", "third.toml": "Third", "fourth.toml": "Fourth"}


@dataclass(frozen=True)
class Sibling:
    """The parts of the making of a sibling.

    `make` writes the rows of each stage into the folder to work in: `train.jsonl` and `valid.jsonl`, those of further
    stages in `second/` and so on. `tokenizer` are the options of `macllm tokenizer train`, which reads `train.jsonl`
    too. `measure` gives the table of a model (a folder) on the rows there.
    """

    make: Callable[[Path], None]
    tokenizer: tuple[str, ...]
    measure: Callable[[Path, Path], str]


SIBLINGS = {
    "encoder": Sibling(masked.make, masked.TOKENIZER, masked.measure),
    "text2text": Sibling(spelling.make, spelling.TOKENIZER, correction.measure),
    "moe": Sibling(chats.make, chats.TOKENIZER, routing.measure),
}


def prepare(sibling: Sibling, build: Path) -> None:
    """Data and tokenizer in `build`, unless they are there."""
    if (build / "tokenizer" / "tokenizer_config.json").exists():
        return
    sibling.make(build)
    rows = [str(build / "train.jsonl"), "--valid", str(build / "valid.jsonl")]
    command = [sys.executable, "-m", "macllm", "tokenizer", "train", *rows, *sibling.tokenizer]
    subprocess.run([*command, "--output", str(build / "tokenizer")], check=True)


def stages(home: Path) -> list[str]:
    """The recipes of a sibling in their order."""
    return [name for name in _STAGES if (home / name).is_file()]


def train(home: Path, build: Path, settings: Sequence[str]) -> Path:
    """Begin all stages, the first with `settings`, or resume them; return the trained model's folder."""
    model = build
    for name in stages(home):
        data = work(build, name)
        if name == "recipe.toml":
            places = [f"data={data}", f"tokenizer={build / 'tokenizer'}", f"output={data / 'run'}", *settings]
        else:
            places = [f"data={data}", f"model={model}", f"adapter_path={data / 'run'}"]
        model = trained("train" if name == "recipe.toml" else "finetune", home / name, data / "run", places)
    return model


def work(build: Path, stage: str) -> Path:
    """The folder with the rows and the run of a stage."""
    return build if stage == "recipe.toml" else build / Path(stage).stem


def report(sibling: Sibling, home: Path, build: Path, model: Path) -> str:
    """The measured part of the card: the table and the curves of all stages."""
    parts = [sibling.measure(model, build)]
    found = stages(home)
    for name in found:
        title = [f"{_STAGES[name]} stage:"] if len(found) > 1 else []
        parts += [*title, curves(work(build, name) / "run" / "metrics.jsonl")]
    return "\n\n".join(parts)


def install(build: Path, model: Path, measured: str, home: Path) -> None:
    """Put the trained model, its config, its tokenizer and the measured part of the card into `home`.

    Raises: ValueError if the folder would be larger than 2 MB; nothing is changed then.
    """
    tokenizer = {path.name: path for path in (build / "tokenizer").iterdir()}
    replaced = {"model.safetensors", "card.md", "config.json", *tokenizer}
    kept = [path for path in home.iterdir() if path.name not in replaced]
    card = written((home / "card.md").read_text(encoding="utf-8"), measured)
    weights = (model / "model.safetensors").stat().st_size // 2  # float16 of float32
    files = [*kept, *tokenizer.values(), home / "shape.json"]
    size = weights + len(card.encode()) + sum(path.stat().st_size for path in files)
    if size > MOST_BYTES:
        raise ValueError(f"{home.name} would take {size / 1e6:.2f} MB, more than {MOST_BYTES / 1e6:.0f}")
    shutil.copy(home / "shape.json", home / "config.json")
    for path in tokenizer.values():
        shutil.copy(path, home)
    bundle.bundle(model, home)
    (home / "card.md").write_text(card, encoding="utf-8")


def main() -> int:
    """Read the command line and make a sibling."""
    parser = argparse.ArgumentParser(description="Make a sibling of maclet from its texts.")
    parser.add_argument("name", choices=SIBLINGS, help="the sibling")
    parser.add_argument("--build", type=Path, help="folder to work in [default: build/siblings/NAME]")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the first stage")
    parser.add_argument("--bundle", action="store_true", help="replace the bundled sibling")
    options = parser.parse_args()
    home, sibling = HOME / options.name, SIBLINGS[options.name]
    build = (options.build or Path("build/siblings") / options.name).absolute()
    prepare(sibling, build)
    model = train(home, build, options.set)
    measured = report(sibling, home, build, model)
    (build / "report.md").write_text(measured + "\n", encoding="utf-8")
    print(measured)
    if options.bundle:
        install(build, model, measured, home)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
