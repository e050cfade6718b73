"""Datasets of a hub: names, splits, and downloads of the wanted files only."""

from __future__ import annotations

from pathlib import Path

import pytest

from macllm.errors import DataError, MacllmError, NetworkError, UsageError
from macllm.hub.dataset_files import canonical, rows_of_splits
from macllm.hub.dataset_names import DatasetName, parse_dataset
from macllm.hub.datasets import HubDataset
from tests.hub.loopback import COMMIT, OTHER_COMMIT, LoopbackHub, Repo

FILES = {"train.jsonl": b'{"text": "one"}\n', "data/validation.jsonl.gz": b"packed", "test.parquet": b"PAR1"}


@pytest.fixture
def repo(hub: LoopbackHub) -> Repo:
    hub.repos["org/rows"] = Repo(dict(FILES, **{"README.md": b"# rows"}), kind="datasets", large=(".gz",))
    return hub.repos["org/rows"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hf:org/name", ("org/name", "main", "", "")),
        ("hf:name", ("name", "main", "", "")),
        ("hf:org/name/test", ("org/name", "main", "", "test")),
        ("hf:org/name:en", ("org/name", "main", "en", "")),
        ("hf:org/name:en/test", ("org/name", "main", "en", "test")),
        ("hf:name:en/test", ("name", "main", "en", "test")),
        ("hf:org/name@v1", ("org/name", "v1", "", "")),
        ("hf:name@main/test", ("name", "main", "", "test")),
        ("hf:org/name:en.2@v1.0/test", ("org/name", "v1.0", "en.2", "test")),
        ("hf:org/name@refs/convert/parquet", ("org/name", "refs/convert/parquet", "", "")),
        ("hf:org/name@refs/pr/7/test", ("org/name", "refs/pr/7", "", "test")),
    ],
)
def test_a_name_has_a_config_a_revision_and_a_split(text: str, parts: tuple[str, ...]) -> None:
    name = parse_dataset(text)
    assert (name.repo, name.revision, name.config, name.split) == parts
    assert parse_dataset(str(name)) == name


@pytest.mark.parametrize("text", ["hf:", "hf:a/b/c/d", "hf:../x", "hf:a:", "hf:a@", "hf:a/b@v/..", "hf:a:b c", "hf:/x"])
def test_other_texts_are_no_names(text: str) -> None:
    with pytest.raises(UsageError, match="not the name of a dataset"):
        parse_dataset(text)


CARD = b"""---
configs:
- config_name: en
  data_files:
  - split: train
    path: en/train-*.jsonl
  - split: extra
    path: ["en/more.jsonl", "**/deep.jsonl"]
- config_name: fr
  default: true
  data_files: "fr/*.jsonl"
- config_name: bare
  data_dir: bare
---
# card
"""
LISTED = [
    "README.md",
    "en/train-0.jsonl",
    "en/train-1.jsonl",
    "en/sub/train-2.jsonl",
    "en/more.jsonl",
    "en/x/deep.jsonl",
]
LISTED += ["fr/a.jsonl", "bare/dev.jsonl", "bare/train.jsonl", ".git.jsonl", "en/train-9.csv"]


@pytest.mark.parametrize(
    ("config", "splits"),
    [
        ("en", {"train": ["en/train-0.jsonl", "en/train-1.jsonl"], "extra": ["en/more.jsonl", "en/x/deep.jsonl"]}),
        ("", {"train": ["fr/a.jsonl"]}),
        ("bare", {"train": ["bare/train.jsonl"], "validation": ["bare/dev.jsonl"]}),
    ],
)
def test_splits_are_those_that_the_card_declares(config: str, splits: dict[str, list[str]]) -> None:
    assert rows_of_splits(DatasetName("org/name", config=config), LISTED, CARD) == splits
    with pytest.raises(DataError, match="no config 'de'") as raised:
        rows_of_splits(DatasetName("org/name", config="de"), LISTED, CARD)
    assert "en, fr, bare" in str(raised.value.cause)


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (["a.jsonl", "b.jsonl"], {"train": ["a.jsonl", "b.jsonl"]}),
        (
            ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000.parquet"],
            {
                "train": ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
                "test": ["data/test-00000.parquet"],
            },
        ),
        (["valid/0.jsonl", "training/0.jsonl"], {"train": ["training/0.jsonl"], "validation": ["valid/0.jsonl"]}),
        (["train.jsonl", "dataset_infos.json", "requirements.txt"], {"train": ["train.jsonl"]}),
        (["train/test.json"], {"test": ["train/test.json"]}),
        (["train.jsonl.zst", "train.jsonl.gz", "train.parquet"], {"train": ["train.jsonl.gz"]}),
        (["train.json", "train.jsonl", "train.jsonl.gz"], {"train": ["train.jsonl"]}),
        (["a.jsonl", "a.jsonl.gz", "b.jsonl.gz"], {"train": ["a.jsonl", "b.jsonl.gz"]}),
        (
            ["train.jsonl", "data/train-0.parquet", "data/train-1.parquet", "test.parquet", "dev.jsonl"],
            {
                "train": ["data/train-0.parquet", "data/train-1.parquet"],
                "validation": ["dev.jsonl"],
                "test": ["test.parquet"],
            },
        ),
        (
            ["rows.jsonl", "schema.json", "rows.schema.json", "dataset_infos.json", "LICENSE.txt", "metadata.json"],
            {"train": ["rows.jsonl"]},
        ),
        (["a.txt", "LICENSE.txt", "license-mit.txt", "README.txt", "requirements.txt"], {"train": ["a.txt"]}),
        (["state_of_the_art.txt", "licensed.txt"], {"train": ["licensed.txt", "state_of_the_art.txt"]}),
        (["one.txt", "two.txt"], {"train": ["one.txt", "two.txt"]}),
        (["devices.jsonl", "trainer.jsonl"], {"train": ["devices.jsonl", "trainer.jsonl"]}),
    ],
)
@pytest.mark.parametrize(
    "card", [None, b"# none", b"---\nconfigs: [\n---\n", b"---\nconfigs: 3\n---\n", b"---\n- 1\n---\n"]
)
def test_without_a_declaration_splits_come_from_the_names(
    files: list[str], splits: dict[str, list[str]], card: bytes | None
) -> None:
    assert rows_of_splits(DatasetName("org/name"), files, card) == splits


def test_several_configs_without_a_default_must_be_named() -> None:
    card = b"---\nconfigs:\n- config_name: a\n  data_files: a.jsonl\n- config_name: b\n  data_files: b.jsonl\n---\n"
    with pytest.raises(DataError, match="has several configs") as raised:
        rows_of_splits(DatasetName("org/name"), ["a.jsonl", "b.jsonl"], card)
    assert raised.value.remedy == "hf:org/name:a"
    converted = DatasetName("org/name", COMMIT)  # of refs/convert/parquet
    with pytest.raises(DataError, match="has several configs"):
        rows_of_splits(converted, ["a/train/0.parquet", "b/train/0.parquet"], None)
    files = [
        "default/train/0000.parquet",
        "b/train/0000.parquet",
        "b/train_sft/0000.parquet",
        "b/partial-x/0000.parquet",
    ]
    assert rows_of_splits(converted, files, None) == {"train": ["default/train/0000.parquet"]}
    assert rows_of_splits(DatasetName("org/name", COMMIT, "b"), files, None) == {
        "train": ["b/train/0000.parquet"], "train_sft": ["b/train_sft/0000.parquet"], "x": ["b/partial-x/0000.parquet"],
    }  # fmt: skip


def test_patterns_of_a_card_name_files_of_rows() -> None:
    files = ["a/0.jsonl", "a/1.jsonl", "a/1.jsonl.gz", "a/x.jsonl", "a/schema.json", "b[1].json", "LICENSE.txt", "c.py"]
    for pattern, matched in (
        ("a/?.jsonl", ["a/0.jsonl", "a/1.jsonl", "a/x.jsonl"]),
        ("a/[0-9].jsonl", ["a/0.jsonl", "a/1.jsonl"]),
        ("a/[!0-9].jsonl", ["a/x.jsonl"]),
        ("a/*", ["a/0.jsonl", "a/1.jsonl", "a/x.jsonl"]),
        ("a/schema.json", ["a/schema.json"]),
        ("b[[]1].json", ["b[1].json"]),
        ("*.json", ["b[1].json"]),
    ):
        card = f"---\nconfigs:\n- config_name: default\n  data_files: '{pattern}'\n---\n".encode()
        assert rows_of_splits(DatasetName("org/name"), files, card) == {"train": matched}, pattern
    for pattern in ("a/[z-a].jsonl", "c.py", "LICENSE*"):
        card = f"---\nconfigs:\n- config_name: default\n  data_files: '{pattern}'\n---\n".encode()
        with pytest.raises(DataError, match="no rows"):
            rows_of_splits(DatasetName("org/name"), files, card)


@pytest.mark.parametrize(
    ("files", "cause"),
    [(["name.py", "README.md"], "loading script"), (["a.csv", "b.arrow"], "it has .arrow, .csv"), ([], "no files")],
)
def test_a_dataset_without_readable_rows_is_refused_with_its_conversion(files: list[str], cause: str) -> None:
    with pytest.raises(DataError, match="no rows that macllm reads") as raised:
        rows_of_splits(DatasetName("org/name"), files, None)
    assert cause in str(raised.value.cause)
    assert "hf:org/name@refs/convert/parquet" in str(raised.value.remedy)


def test_splits_have_other_names() -> None:
    assert canonical("valid", {"validation": []}) == "validation"
    assert canonical("validation", {"dev": []}) == "dev"
    assert canonical("extra", {"train": []}) == "extra"


def test_only_the_files_of_the_wanted_split_are_fetched(hub: LoopbackHub, repo: Repo) -> None:
    dataset = HubDataset(parse_dataset("hf:org/rows"))
    assert list(dataset.splits) == ["validation", "test", "train"]
    found = dataset.files("train")
    assert str(found.name) == f"hf:org/rows@{COMMIT}/train"
    ((name, path),) = found.files
    assert (name, path.read_bytes()) == ("train.jsonl", FILES["train.jsonl"])
    assert "datasets--org--rows" in str(path)
    assert hub.sent_bytes.keys() == {"README.md", "train.jsonl"}
    with pytest.raises(DataError, match="no split 'other'") as raised:
        dataset.files("other")
    assert "validation, test, train" in str(raised.value.cause)


def test_a_fetched_split_needs_no_network_afterwards(
    hub: LoopbackHub, repo: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    HubDataset(parse_dataset("hf:org/rows")).files("train")
    count = len(hub.requests)
    pinned = HubDataset(parse_dataset(f"hf:org/rows@{COMMIT}"))
    assert pinned.files("train").files[0][1].exists()
    assert len(hub.requests) == count
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    offline = HubDataset(parse_dataset("hf:org/rows"))
    assert offline.name.revision == COMMIT
    assert offline.files("train").files == pinned.files("train").files
    with pytest.raises(DataError, match="macllm is offline"):
        offline.files("validation")
    with pytest.raises(DataError, match="macllm is offline"):
        HubDataset(parse_dataset("hf:org/other"))
    assert len(hub.requests) == count


def test_a_moved_branch_gives_new_rows_and_a_pinned_commit_the_old(hub: LoopbackHub, repo: Repo) -> None:
    HubDataset(parse_dataset("hf:org/rows")).files("train")
    repo.commit, repo.files = OTHER_COMMIT, dict(repo.files, **{"train.jsonl": b'{"text": "two"}\n'})
    new = HubDataset(parse_dataset("hf:org/rows")).files("train")
    assert new.name.revision == OTHER_COMMIT
    assert new.files[0][1].read_bytes() == b'{"text": "two"}\n'
    old = HubDataset(parse_dataset(f"hf:org/rows@{COMMIT}")).files("train")
    assert old.files[0][1].read_bytes() == FILES["train.jsonl"]


def test_an_unreachable_hub_gives_what_is_on_this_machine(hub: LoopbackHub, repo: Repo) -> None:
    HubDataset(parse_dataset("hf:org/rows")).files("train")
    hub.faults.api = [(503, {})] * 9
    assert HubDataset(parse_dataset("hf:org/rows")).files("train").name.revision == COMMIT


def test_an_interrupted_download_goes_on_where_it_stopped(hub: LoopbackHub, repo: Repo) -> None:
    repo.files["train.jsonl"] = content = b'{"text": "a row"}\n' * 9000
    hub.faults.drop_after["train.jsonl"] = [50_000] * 3
    assert HubDataset(parse_dataset("hf:org/rows")).files("train").files[0][1].read_bytes() == content
    assert hub.sent_bytes["train.jsonl"] == len(content)


@pytest.mark.parametrize(
    ("text", "fault", "kind", "message"),
    [
        ("hf:org/none", None, DataError, "the hub has no dataset org/none"),
        ("hf:org/tiny", None, DataError, "the hub has no dataset org/tiny"),
        ("hf:org/rows@v9", None, DataError, "has no revision 'v9'"),
        ("hf:org/rows", (403, {"X-Error-Code": "GatedRepo"}), NetworkError, "requires that you accept its terms"),
        ("hf:org/rows", (401, {}), NetworkError, "refuses org/rows"),
    ],
)
def test_missing_and_refused_datasets_are_told(
    hub: LoopbackHub, repo: Repo, text: str, fault: tuple[int, dict[str, str]] | None, kind: type[MacllmError],
    message: str,
) -> None:  # fmt: skip
    hub.faults.api = [fault] if fault else []
    with pytest.raises(kind, match=message) as raised:
        HubDataset(parse_dataset(text))
    if "terms" in message:
        assert f"{hub.endpoint}/datasets/org/rows" in str(raised.value.remedy)


def test_a_listing_that_was_damaged_is_asked_again(hub: LoopbackHub, repo: Repo) -> None:
    path = HubDataset(parse_dataset("hf:org/rows")).files("train").files[0][1]
    (kept,) = path.parent.parent.parent.glob(".macllm/*.listing.json")
    for content in ("{", "[]", '{"files": {"../x": [1, "a"]}, "card": null}'):
        kept.write_text(content)
        assert HubDataset(parse_dataset(f"hf:org/rows@{COMMIT}")).files("train").files == (("train.jsonl", Path(path)),)
