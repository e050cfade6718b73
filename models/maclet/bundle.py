"""Bundle a run's weights as maclet's checkpoint: `python models/maclet/bundle.py RUN/model`.

They are stored in float16, half the size of what was trained; everything else of the checkpoint is here already.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

HOME = Path(__file__).parent


def bundle(trained: Path, home: Path = HOME) -> Path:
    """Write `model.safetensors` into `home`. Raises: ValueError if the run does not match its config."""
    import mlx.core as mx

    from macllm.weights.safetensors import load_folder, save_folder

    theirs, ours = (json.loads((folder / "config.json").read_text(encoding="utf-8")) for folder in (trained, home))
    free = {"dtype", "torch_dtype"}
    differing = sorted(name for name in ours.keys() | theirs.keys() if theirs.get(name) != ours.get(name))
    if set(differing) - free:
        raise ValueError(f"{trained} is not of the shape in {home / 'config.json'}: {', '.join(differing)}")
    if (trained / "tokenizer.model").read_bytes() != (home / "tokenizer.model").read_bytes():
        raise ValueError(f"{trained} was trained with another tokenizer than the one in {home}")
    save_folder({name: tensor.astype(mx.float16) for name, tensor in load_folder(trained).items()}, home)
    return home / "model.safetensors"


def main() -> None:
    """Read the command line and bundle."""
    parser = argparse.ArgumentParser(description="Put a run's weights into the package.")
    parser.add_argument("trained", type=Path, help="the model folder of the run")
    path = bundle(parser.parse_args().trained)
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
