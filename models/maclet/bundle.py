"""Bundle a run's weights as maclet's checkpoint: `python models/maclet/bundle.py RUN/model`.

They are stored in float16, half the size of what was trained; everything else of the checkpoint is here already.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

HOME = Path(__file__).parent


def bundle(trained: Path, home: Path = HOME) -> Path:
    """Write `model.safetensors` into `home`. Raises: ValueError if the run does not match the files there."""
    import mlx.core as mx

    from macllm.weights.safetensors import SINGLE_NAME, load_folder, read_metadata, save_folder

    theirs, ours = (json.loads((folder / "config.json").read_text(encoding="utf-8")) for folder in (trained, home))
    free = {"dtype", "torch_dtype"}
    differing = sorted(name for name in ours.keys() | theirs.keys() if theirs.get(name) != ours.get(name))
    if set(differing) - free:
        raise ValueError(f"{trained} is not of the shape in {home / 'config.json'}: {', '.join(differing)}")
    if any((trained / path.name).read_bytes() != path.read_bytes() for path in _tokenizers(home)):
        raise ValueError(f"{trained} was trained with another tokenizer than the one in {home}")
    halves = {name: tensor.astype(mx.float16) for name, tensor in load_folder(trained).items()}
    save_folder(halves, home, read_metadata(trained / SINGLE_NAME))  # which says whose names the tensors have
    return home / "model.safetensors"


def _tokenizers(folder: Path) -> list[Path]:
    """The files of the tokenizer. Raises: ValueError if there is none."""
    found = [folder / name for name in ("tokenizer.model", "tokenizer.json") if (folder / name).is_file()]
    if not found:
        raise ValueError(f"{folder} has no tokenizer")
    return found


def main() -> None:
    """Read the command line and bundle."""
    parser = argparse.ArgumentParser(description="Put a run's weights into the package.")
    parser.add_argument("trained", type=Path, help="the model folder of the run")
    path = bundle(parser.parse_args().trained)
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
