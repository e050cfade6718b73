from __future__ import annotations

import errno
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from macllm import hub as macllm_hub
from macllm.errors import DoesNotFitError, MacllmError, ModelNotFoundError, NetworkError
from macllm.hub import snapshot, transfer
from macllm.hub.files import RepoFile
from tests.hub.conftest import CONFIG, model_files
from tests.hub.loopback import COMMIT, OTHER_COMMIT, Repo, digest_of

WEIGHTS = "model.safetensors"


def whole(folder: Path, repo: Repo) -> bool:
    return all((folder / name).read_bytes() == repo.files[name] for name in ("config.json", "tokenizer.json", WEIGHTS))


def incomplete(hub) -> Path:
    digest = digest_of(hub.repos["org/tiny"].files[WEIGHTS], True)
    return macllm_hub.cache_folder() / "models--org--tiny" / "blobs" / f"{digest}.incomplete"


def test_resolving_a_name_downloads_only_the_needed_files(hub):
    folder = macllm_hub.resolve("org/tiny")
    assert whole(folder, hub.repos["org/tiny"])
    assert {path.name for path in folder.iterdir()} == {"config.json", "tokenizer.json", WEIGHTS}
    assert folder == macllm_hub.cache_folder() / "models--org--tiny" / "snapshots" / COMMIT
    assert "pytorch_model.bin" not in hub.sent_bytes
    assert not list(macllm_hub.cache_folder().rglob("*.tmp")) + list(macllm_hub.cache_folder().rglob("*.incomplete"))


def test_a_tokenizer_is_downloaded_without_the_weights_of_its_model(hub, monkeypatch):
    folder = macllm_hub.resolve_tokenizer("org/tiny")
    assert {path.name for path in folder.iterdir()} == {"config.json", "tokenizer.json"}
    assert WEIGHTS not in hub.sent_bytes
    before = len(hub.requests)
    assert macllm_hub.resolve_tokenizer("org/tiny") == folder
    assert len(hub.requests) == before
    assert macllm_hub.list_models()[-1].problem == "1 of 3 files are missing"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert macllm_hub.resolve_tokenizer("org/tiny") == folder
    with pytest.raises(ModelNotFoundError, match="incomplete"):
        macllm_hub.resolve("org/tiny")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert whole(macllm_hub.resolve("org/tiny"), hub.repos["org/tiny"])
    assert macllm_hub.resolve_tokenizer("org/tiny") == folder


def test_a_downloaded_model_is_found_without_a_request(hub):
    folder = macllm_hub.resolve("org/tiny")
    before = len(hub.requests)
    assert macllm_hub.resolve("org/tiny") == folder
    assert macllm_hub.resolve("org/tiny", offline=True) == folder
    assert macllm_hub.resolve(f"org/tiny@{COMMIT}") == folder
    assert len(hub.requests) == before


def test_huggingface_hub_finds_the_downloaded_model(hub):
    from huggingface_hub import scan_cache_dir, try_to_load_from_cache

    folder = macllm_hub.resolve("org/tiny")
    cache = macllm_hub.cache_folder()
    assert try_to_load_from_cache("org/tiny", WEIGHTS, cache_dir=cache) == str(folder / WEIGHTS)
    scanned = scan_cache_dir(cache)
    assert not scanned.warnings
    assert [(repo.repo_id, repo.nb_files) for repo in scanned.repos] == [("org/tiny", 3)]


def test_the_token_goes_to_the_hub_and_never_to_its_storage(hub):
    macllm_hub.resolve("org/tiny")
    for _, path, headers in hub.requests:
        expected = None if path.startswith("/storage/") else "Bearer hf_secret"
        assert headers.get("authorization") == expected, path
    assert not [path for path in hub.paths() if not path.startswith(("/api/models/org/tiny", "/org/tiny", "/storage"))]


def test_progress_ends_at_the_total_and_never_runs_backwards(hub):
    seen = []
    macllm_hub.resolve("org/tiny", progress=seen.append)
    total = sum(len(hub.repos["org/tiny"].files[name]) for name in ("config.json", "tokenizer.json", WEIGHTS))
    assert {event.total_bytes for event in seen} == {total}
    done = [event.done_bytes for event in seen]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, total)
    assert {event.file for event in seen} == {"config.json", "tokenizer.json", WEIGHTS}
    assert seen[-1].bytes_per_second > 0


def test_two_files_with_the_same_content_are_fetched_and_counted_once(hub):
    hub.repos["org/tiny"].files["tokenizer_config.json"] = CONFIG
    seen = []
    folder = macllm_hub.resolve("org/tiny", progress=seen.append)
    assert (folder / "tokenizer_config.json").read_bytes() == CONFIG
    assert seen[-1].done_bytes == seen[-1].total_bytes
    assert sum(hub.sent_bytes.get(name, 0) for name in ("config.json", "tokenizer_config.json")) == len(CONFIG)


def test_a_dropped_connection_resumes_and_no_byte_is_sent_twice(hub):
    hub.faults.drop_after[WEIGHTS] = [100_000, 50_000, 1]
    folder = macllm_hub.resolve("org/tiny")
    assert whole(folder, hub.repos["org/tiny"])
    assert hub.sent_bytes[WEIGHTS] == len(hub.repos["org/tiny"].files[WEIGHTS])
    ranges = [headers.get("range") for _, path, headers in hub.requests if path.startswith("/storage")]
    assert ranges == [None, "bytes=100000-", "bytes=150000-", "bytes=150001-"]


def test_a_failed_download_resumes_in_the_next_call(hub):
    hub.faults.drop_after[WEIGHTS] = [200_000, *[0] * transfer.DOWNLOAD_ATTEMPTS]
    with pytest.raises(NetworkError, match="which resumes it") as caught:
        macllm_hub.resolve("org/tiny")
    assert caught.value.exit_code == 5
    with pytest.raises(ModelNotFoundError, match="incomplete on this machine"):
        macllm_hub.resolve("org/tiny", offline=True)
    (unfinished,) = (model for model in macllm_hub.list_models() if model.name == "org/tiny")
    assert unfinished.problem == "1 of 3 files are missing"
    assert unfinished.size_bytes > 200_000
    hub.faults.drop_after.clear()
    seen = []
    assert whole(macllm_hub.resolve("org/tiny", progress=seen.append), hub.repos["org/tiny"])
    assert seen[0].done_bytes > 200_000
    assert hub.sent_bytes[WEIGHTS] == len(hub.repos["org/tiny"].files[WEIGHTS])


def test_a_server_without_ranges_sends_the_file_again_from_its_start(hub):
    hub.faults.ignore_range = True
    hub.faults.drop_after[WEIGHTS] = [100_000]
    seen = []
    assert whole(macllm_hub.resolve("org/tiny", progress=seen.append), hub.repos["org/tiny"])
    assert seen[-1].done_bytes == seen[-1].total_bytes


def test_a_partial_file_damaged_by_a_crash_is_fetched_again(hub):
    incomplete(hub).parent.mkdir(parents=True)
    incomplete(hub).write_bytes(bytes(120_000))
    assert whole(macllm_hub.resolve("org/tiny"), hub.repos["org/tiny"])


def test_a_partial_file_longer_than_the_file_is_discarded(hub):
    incomplete(hub).parent.mkdir(parents=True)
    incomplete(hub).write_bytes(bytes(400_000))
    assert whole(macllm_hub.resolve("org/tiny"), hub.repos["org/tiny"])


@pytest.mark.parametrize("content", [b"x" * 300_000, b"x" * 300_001, b"x" * 900_000])
def test_content_that_differs_from_the_listing_is_refused_and_not_kept(hub, monkeypatch, content):
    monkeypatch.setattr(snapshot, "_EVENT_SECONDS", 0.0)
    hub.faults.replace[WEIGHTS] = [content, content]
    seen = []
    with pytest.raises(NetworkError, match="differs from the hub"):
        macllm_hub.resolve("org/tiny", progress=seen.append)
    assert all(event.done_bytes <= event.total_bytes for event in seen)
    with pytest.raises(ModelNotFoundError):
        macllm_hub.resolve("org/tiny", offline=True)
    hub.faults.replace.clear()
    assert whole(macllm_hub.resolve("org/tiny"), hub.repos["org/tiny"])


def test_content_shorter_than_listed_is_refused(hub):
    hub.faults.replace[WEIGHTS] = [b"x" * 1000] * 20
    with pytest.raises(NetworkError):
        macllm_hub.resolve("org/tiny")


def test_a_stalled_connection_ends_in_an_error(hub, monkeypatch):
    monkeypatch.setattr(transfer, "STALL_SECONDS", 0.05)
    hub.faults.stall_after[WEIGHTS] = 50_000
    with pytest.raises(NetworkError, match="Timeout"):
        macllm_hub.resolve("org/tiny")


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_hub_is_tried_again(hub, status):
    hub.faults.api = [(status, {})]
    hub.faults.files[WEIGHTS] = [(status, {"Retry-After": "0"})] * 2
    assert whole(macllm_hub.resolve("org/tiny"), hub.repos["org/tiny"])


@pytest.mark.parametrize(
    ("headers", "waited"),
    [
        ({}, 0.001),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "9999"}, 60.0),
        ({"Retry-After": "Wed, 21 Oct"}, 0.001),
    ],
)
def test_a_retry_waits_for_retry_after_up_to_a_minute(hub, monkeypatch, headers, waited):
    sleeps = []
    monkeypatch.setattr(transfer, "slept", lambda seconds, on_wait: sleeps.append(seconds))
    hub.faults.api = [(429, headers)]
    assert whole(macllm_hub.resolve("org/tiny"), hub.repos["org/tiny"])
    assert sleeps == [waited]


def test_no_token_is_sent_if_hf_hub_disable_implicit_token_is_set(hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    macllm_hub.resolve("org/tiny")
    assert hub.requests
    assert not [path for _, path, headers in hub.requests if "authorization" in headers]


def test_a_file_name_with_spaces_and_special_characters_is_downloaded(hub):
    name = "additional_chat_templates/tool use? 50% #1 é.jinja"
    hub.repos["org/tiny"].files[name] = b"{{ x }}"
    assert (macllm_hub.resolve("org/tiny") / name).read_bytes() == b"{{ x }}"


def test_the_reported_speed_is_of_the_last_seconds(monkeypatch):
    now, events = [100.0], []
    monkeypatch.setattr(snapshot.time, "monotonic", lambda: now[0])
    file = RepoFile("a", 10_000, "0" * 64)
    meter = snapshot._Meter([file], {file.digest: 10_000}, events.append)
    meter.start(file)
    for seconds, size in ((1, 1000), (2, 1000), (20, 500), (1, 500), (1, 500)):
        now[0] += seconds
        meter.add(size)
    assert events[0].bytes_per_second == 0.0
    assert events[3].bytes_per_second == 0.0  # unknown after a pause
    assert events[-1].bytes_per_second == 1500 / 2
    assert events[-1].done_bytes == 3500


GATED = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model org/tiny is restricted."}


@pytest.mark.parametrize(
    ("status", "headers", "kind", "remedy"),
    [
        (401, {"X-Error-Message": "Invalid credentials in Authorization header"}, NetworkError, "check HF_TOKEN"),
        (401, {"X-Error-Code": "RepoNotFound"}, ModelNotFoundError, "set HF_TOKEN"),
        (401, GATED, NetworkError, "/org/tiny, then wait"),
        (403, GATED, NetworkError, "accept them at"),
        (403, {}, NetworkError, "check HF_TOKEN"),
        (404, {}, ModelNotFoundError, "check the name"),
        (418, {}, NetworkError, "look at"),
    ],
)
def test_every_refusal_of_the_hub_has_its_remedy(hub, status, headers, kind, remedy):
    hub.faults.api = [(status, headers)]
    with pytest.raises(kind) as caught:
        macllm_hub.resolve("org/tiny")
    assert remedy in caught.value.remedy
    assert caught.value.exit_code == (3 if kind is ModelNotFoundError else 5)
    assert len(hub.requests) == 1


def test_a_failing_hub_is_one_error_after_all_attempts(hub):
    hub.faults.api = [(500, {})] * 10
    with pytest.raises(NetworkError, match="500 Internal Server Error"):
        macllm_hub.resolve("org/tiny")
    assert len(hub.requests) == transfer.ATTEMPTS


def test_without_a_token_errors_of_missing_and_gated_models_suggest_hf_token(hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    hub.faults.api = [(401, {"X-Error-Message": "Invalid username or password."})]
    with pytest.raises(ModelNotFoundError, match="set HF_TOKEN"):
        macllm_hub.resolve("org/tiny")
    hub.faults.files["config.json"] = [(401, GATED)]
    with pytest.raises(NetworkError, match="set HF_TOKEN to a token of that account"):
        macllm_hub.resolve("org/tiny")
    assert not (macllm_hub.cache_folder() / "models--org--tiny").exists()


def test_an_unknown_name_suggests_similar_downloaded_models(hub):
    macllm_hub.resolve("org/tiny")
    for name in ("org/tinny", "other/tiny"):
        with pytest.raises(ModelNotFoundError, match="org/tiny"):
            macllm_hub.resolve(name)
        with pytest.raises(ModelNotFoundError, match="org/tiny"):
            macllm_hub.resolve(name, offline=True)


@pytest.mark.parametrize("name", ["maclat", "Maclet", "mackelt", "macllm/maclet", "maclet-chat"])
def test_a_misspelled_name_of_the_bundled_model_suggests_it(hub, monkeypatch, name):
    for offline in (True, False):
        with pytest.raises(ModelNotFoundError) as error:
            macllm_hub.resolve(name, offline=offline)
        assert "maclet, which is on this machine" in error.value.remedy
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(NetworkError) as unreachable:
        macllm_hub.resolve(name)
    assert "did you mean maclet, which is on this machine?" in unreachable.value.remedy


def test_a_missing_path_that_ends_in_maclet_suggests_the_bundled_model(hub):
    with pytest.raises(ModelNotFoundError) as error:
        macllm_hub.resolve("./maclet")
    assert "the bundled model is maclet" in error.value.remedy


def test_an_unknown_revision_is_named(hub):
    with pytest.raises(ModelNotFoundError, match="no revision 'v9'"):
        macllm_hub.resolve("org/tiny@v9")


def test_a_revision_with_a_slash_is_kept_under_its_name(hub):
    hub.repos["org/tiny"].revisions = ("main", "refs/pr/1")
    folder = macllm_hub.resolve("org/tiny@refs/pr/1")
    assert (macllm_hub.cache_folder() / "models--org--tiny" / "refs" / "refs" / "pr" / "1").read_text() == COMMIT
    assert macllm_hub.resolve("org/tiny@refs/pr/1", offline=True) == folder


def test_an_unreachable_hub_is_a_network_error(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(NetworkError, match="check the network"):
        macllm_hub.resolve("org/tiny")
    monkeypatch.setenv("HF_ENDPOINT", "gopher://127.0.0.1")
    with pytest.raises(NetworkError, match="check HF_ENDPOINT"):
        macllm_hub.resolve("org/tiny")


@pytest.mark.parametrize(
    "change",
    [
        {"sha": "../../../etc"},
        {"sha": None},
        {"siblings": None},
        {"siblings": [{"rfilename": "config.json"}]},
        {"siblings": [{"rfilename": "../config.json", "size": 1, "blobId": "0" * 40}]},
        {"siblings": [{"rfilename": "/etc/config.json", "size": 1, "blobId": "0" * 40}]},
        {"siblings": [{"rfilename": "a/../../x.json", "size": 1, "blobId": "0" * 40}]},
        {"siblings": [{"rfilename": "a\\x.json", "size": 1, "blobId": "0" * 40}]},
        {"siblings": [{"rfilename": "x\n.json", "size": 1, "blobId": "0" * 40}]},
        {"siblings": [{"rfilename": "config.json", "size": 1, "blobId": "../../../../x"}]},
        {"siblings": [{"rfilename": "config.json", "size": -1, "blobId": "0" * 40}]},
    ],
)
def test_a_hostile_listing_writes_nothing(hub, change):
    hub.repos["org/tiny"].listing = change
    with pytest.raises(NetworkError):
        macllm_hub.resolve("org/tiny")
    assert not macllm_hub.cache_folder().exists()


# The disk


def test_a_disk_too_small_is_an_error_with_both_numbers_before_the_first_byte(hub, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(snapshot.shutil, "disk_usage", lambda path: usage(0, 0, 200_000))
    with pytest.raises(DoesNotFitError, match=r"needs 300\.\d kB more; 200\.0 kB are free") as caught:
        macllm_hub.resolve("org/tiny")
    assert caught.value.exit_code == 4
    assert hub.sent_bytes == {}
    assert not (macllm_hub.cache_folder() / "models--org--tiny").exists()


def test_only_the_missing_bytes_must_fit_on_the_disk(hub, monkeypatch):
    incomplete(hub).parent.mkdir(parents=True)
    incomplete(hub).write_bytes(hub.repos["org/tiny"].files[WEIGHTS][:200_000])
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(snapshot.shutil, "disk_usage", lambda path: usage(0, 0, 101_000))
    assert whole(macllm_hub.resolve("org/tiny"), hub.repos["org/tiny"])


def test_a_download_to_a_full_disk_fails_and_resumes_later(hub, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(transfer.os, "fsync", full)
        with pytest.raises(DoesNotFitError, match="disk is full"):
            macllm_hub.resolve("org/tiny")
    with pytest.raises(ModelNotFoundError):
        macllm_hub.resolve("org/tiny", offline=True)
    assert whole(macllm_hub.resolve("org/tiny"), hub.repos["org/tiny"])


def test_a_cache_that_cannot_be_written_is_one_clear_error(hub, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    with pytest.raises(MacllmError, match="cannot be written"):
        macllm_hub.resolve("org/tiny")


def test_a_file_system_without_links_gets_regular_files(hub, monkeypatch):
    def unsupported(self, target):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", unsupported)
    folder = macllm_hub.resolve("org/tiny")
    assert whole(folder, hub.repos["org/tiny"])
    assert not (folder / WEIGHTS).is_symlink()
    assert macllm_hub.resolve("org/tiny", offline=True) == folder
    assert {checked.status for checked in macllm_hub.verify("org/tiny")} == {"ok"}


# Interrupts

PROGRAM = "from macllm import hub; hub.resolve('org/tiny')"


def run_until_bytes(hub, wanted: int, number: int) -> int:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (incomplete(hub).exists() and incomplete(hub).stat().st_size >= wanted):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    return process.wait(30)


def test_ctrl_c_and_kill_leave_a_partial_file_that_the_next_run_completes(hub):
    hub.faults.seconds_per_chunk = 0.02
    assert run_until_bytes(hub, 40_000, signal.SIGINT) in (-signal.SIGINT, 130)
    first = incomplete(hub).stat().st_size
    assert run_until_bytes(hub, first + 40_000, signal.SIGKILL) == -signal.SIGKILL
    second = incomplete(hub).stat().st_size
    with pytest.raises(ModelNotFoundError, match="incomplete"):
        macllm_hub.resolve("org/tiny", offline=True)
    hub.faults.seconds_per_chunk = 0
    assert whole(macllm_hub.resolve("org/tiny"), hub.repos["org/tiny"])
    ranges = [headers.get("range") for _, path, headers in hub.requests if path.startswith("/storage")]
    assert ranges == [None, f"bytes={first}-", f"bytes={second}-"]


def test_two_processes_fetch_one_model_once_and_both_reach_the_total(hub):
    hub.faults.seconds_per_chunk = 0.05
    program = """
from macllm import hub
events = []
hub.resolve("org/tiny", progress=events.append)
assert all(event.done_bytes == event.total_bytes for event in events[-1:]), events[-1]
"""
    processes = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert hub.sent_bytes[WEIGHTS] == len(hub.repos["org/tiny"].files[WEIGHTS])
    assert whole(macllm_hub.resolve("org/tiny", offline=True), hub.repos["org/tiny"])


# Updates


def test_download_updates_a_model_and_fetches_only_changed_files(hub):
    old = macllm_hub.resolve("org/tiny")
    hub.repos["org/tiny"] = Repo(dict(hub.repos["org/tiny"].files) | {"config.json": CONFIG + b" "}, OTHER_COMMIT)
    before = hub.sent_bytes[WEIGHTS]
    new = macllm_hub.download("org/tiny")
    assert new.name == OTHER_COMMIT
    assert hub.sent_bytes[WEIGHTS] == before
    assert whole(new, hub.repos["org/tiny"])
    assert macllm_hub.resolve("org/tiny", offline=True) == new
    assert macllm_hub.resolve(f"org/tiny@{COMMIT}", offline=True) == old


def test_an_interrupted_update_leaves_the_old_model_whole(hub):
    old = macllm_hub.resolve("org/tiny")
    hub.repos["org/tiny"] = Repo(model_files(), OTHER_COMMIT)
    hub.faults.drop_after[WEIGHTS] = [0] * 20
    with pytest.raises(NetworkError):
        macllm_hub.download("org/tiny")
    assert macllm_hub.resolve("org/tiny", offline=True) == old
