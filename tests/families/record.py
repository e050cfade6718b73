"""Record transformers' logits for every case: `python -m tests.families.record`.

A golden holds the config, the names and shapes of the tensors (`oracles.tensor` makes their values), the
input, and every third logit of each position.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np

from tests.families.oracles import CASES, Case, batch, write

FOLDER = Path(__file__).parent / "golden"
EVERY = 3


def record(case: Case) -> None:
    """Write one golden."""
    import torch
    import transformers
    from safetensors.numpy import load_file

    from tests.families.test_parity import compared, theirs_logits

    b = batch(case)
    with tempfile.TemporaryDirectory() as folder:
        model = write(case, Path(folder))
        with torch.no_grad():
            logits = theirs_logits(case, model, b).numpy()
        config = json.loads((Path(folder) / "config.json").read_text())
        stored = load_file(Path(folder) / "model.safetensors")
    about = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "config": config,
        "tensors": {name: list(array.shape) for name, array in stored.items()},
    }
    np.savez_compressed(
        FOLDER / f"{case.name}.npz",
        about=np.array(json.dumps(about, sort_keys=True)),
        logits=np.where(compared(case, b)[..., None], logits, 0)[..., ::EVERY],
    )


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for each in CASES:
        record(each)
        print(each.name)
