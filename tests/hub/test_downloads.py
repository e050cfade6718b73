"""Downloads in threads: progress, pause, resume, cancel, failures."""

from __future__ import annotations

import fcntl
import threading
import time
from collections.abc import Callable

import pytest

from macllm.errors import DoesNotFitError, ModelNotFoundError, NetworkError, UsageError
from macllm.hub import cache, resolve, snapshot, verify
from macllm.hub.downloads import Downloads, DownloadStatus
from macllm.hub.names import parse_name
from tests.hub.conftest import model_files
from tests.hub.loopback import OTHER_COMMIT, LoopbackHub, Repo, digest_of

NAME = "org/tiny"


class Log:
    def __init__(self) -> None:
        self.statuses: list[DownloadStatus] = []
        self.downloads = Downloads(self.statuses.append)

    def until(self, condition: Callable[[DownloadStatus], object], seconds: float = 10.0) -> DownloadStatus:
        end = time.monotonic() + seconds
        while not ((status := self.downloads.status(NAME)) and condition(status)):
            assert time.monotonic() < end, self.statuses[-5:]
            time.sleep(0.002)
        return status

    def state(self, *states: str) -> DownloadStatus:
        return self.until(lambda status: status.state in states)


@pytest.fixture
def log() -> Log:
    return Log()


def slowly(hub: LoopbackHub, seconds: float = 0.02) -> None:
    hub.faults.seconds_per_chunk = seconds


def begun(log: Log, byte_count: int = 30_000) -> None:
    log.downloads.start(NAME)
    log.until(lambda status: status.done_bytes >= byte_count)


def bytes_sent_until_quiet(hub: LoopbackHub) -> int:
    """Bytes of the weights sent by the time when no more are; the connection may close late."""
    slowly(hub, 0.1)
    sent = -1
    while sent != (sent := hub.sent_bytes["model.safetensors"]):
        time.sleep(1.0)
    return sent


def test_a_download_reports_bytes_rate_and_time_and_ends_with_the_folder(hub: LoopbackHub, log: Log) -> None:
    slowly(hub)
    log.downloads.start(NAME)
    done = log.state("done")
    assert done.folder == resolve(NAME, offline=True)
    assert done.done_bytes == done.total_bytes > 300_000
    assert done.seconds_left is None
    moving = [status for status in log.statuses if status.state == "running" and status.bytes_per_second > 0]
    assert moving
    for status in moving:
        left = status.total_bytes - status.done_bytes
        assert status.seconds_left == pytest.approx(left / status.bytes_per_second)
    counts = [status.done_bytes for status in log.statuses]
    assert counts == sorted(counts)


def test_a_paused_download_keeps_its_bytes_and_goes_on_from_there(hub: LoopbackHub, log: Log) -> None:
    slowly(hub)
    begun(log)
    log.downloads.pause(NAME)
    paused = log.state("paused")
    assert 0 < paused.done_bytes < paused.total_bytes
    assert bytes_sent_until_quiet(hub) < 300_000  # nothing is fetched while it is paused
    slowly(hub, 0.0)
    log.downloads.start(NAME)
    assert log.state("done").folder == resolve(NAME, offline=True)
    assert hub.sent_bytes["model.safetensors"] < 300_000 + 200_000


def test_a_pause_that_is_taken_back_before_it_is_noticed_stops_nothing(hub: LoopbackHub, log: Log) -> None:
    slowly(hub)
    begun(log)
    log.downloads.pause(NAME)
    log.downloads.start(NAME)
    log.state("done")


@pytest.mark.parametrize("received", [0, 50_000])
def test_a_stalled_download_pauses_at_once_and_goes_on_from_its_bytes(
    received: int, hub: LoopbackHub, log: Log
) -> None:
    hub.faults.stall_after["model.safetensors"] = received  # for 30 s, three times as long as `until` waits
    log.downloads.start(NAME)
    held = received // 16_384 * 16_384
    log.until(lambda status: status.done_bytes >= held and len(hub.paths()) >= 5)
    log.downloads.pause(NAME)
    assert log.state("paused").done_bytes >= held
    hub.faults.stall_after.clear()
    log.downloads.start(NAME)
    log.state("done")
    assert {check.status for check in verify(NAME)} == {"ok"}
    assert hub.sent_bytes["model.safetensors"] == 300_000


def test_a_hub_that_does_not_answer_holds_up_neither_a_pause_nor_a_close(hub: LoopbackHub, log: Log) -> None:
    hub.faults.stall_api = True
    log.downloads.start(NAME)
    log.until(lambda status: hub.paths())
    log.downloads.pause(NAME)
    assert log.state("paused").done_bytes == 0
    log.downloads.start(NAME)
    log.downloads.close(wait_seconds=10)
    assert log.downloads.statuses()[0].state == "paused"


def test_a_download_that_waits_for_another_process_can_be_paused(hub: LoopbackHub, log: Log) -> None:
    digest = digest_of(hub.repos[NAME].files["model.safetensors"], True)
    path = cache.cache_folder() / ".locks" / "models--org--tiny" / f"{digest}.lock"
    path.parent.mkdir(parents=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        log.downloads.start(NAME)
        log.until(lambda status: status.done_bytes > 0)
        log.downloads.pause(NAME)
        log.state("paused")
    log.downloads.start(NAME)
    log.state("done")


def test_a_rate_falls_while_nothing_comes(hub: LoopbackHub, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "_RATE_SECONDS", 0.1)
    slowly(hub)
    hub.faults.stall_after["model.safetensors"] = 100_000
    begun(log)
    log.until(lambda status: status.bytes_per_second > 0)
    log.until(lambda status: status.bytes_per_second == 0)
    log.downloads.pause(NAME)
    log.state("paused")


def test_a_cancelled_download_leaves_nothing(hub: LoopbackHub, log: Log) -> None:
    slowly(hub)
    begun(log)
    log.downloads.cancel(NAME)
    assert log.state("cancelled").done_bytes == 0
    assert cache.models() == []
    assert not cache.repo_folder(NAME).exists()


def test_a_paused_download_can_be_cancelled(hub: LoopbackHub, log: Log) -> None:
    slowly(hub)
    begun(log)
    log.downloads.pause(NAME)
    log.state("paused")
    log.downloads.cancel(NAME)
    log.state("cancelled")
    assert not cache.repo_folder(NAME).exists()


def test_cancelling_an_update_keeps_the_complete_revision(hub: LoopbackHub, log: Log) -> None:
    log.downloads.start(NAME)
    first = log.state("done").folder
    newer = model_files()
    hub.repos[NAME] = Repo(newer, commit=OTHER_COMMIT)
    slowly(hub)
    begun(log)
    log.downloads.cancel(NAME)
    log.state("cancelled")
    (only,) = cache.models()
    assert (only.path, only.problem) == (first, None)
    assert resolve(NAME, offline=True) == first
    assert not list(cache.repo_folder(NAME).glob("blobs/*.incomplete"))
    assert len(list(cache.repo_folder(NAME).glob("blobs/*"))) == 3


def test_discarding_touches_no_complete_model(hub: LoopbackHub, log: Log) -> None:
    log.downloads.start(NAME)
    folder = log.state("done").folder
    cache.discard(parse_name(NAME))
    cache.discard(parse_name("org/unknown"))
    assert resolve(NAME, offline=True) == folder


def test_a_network_that_goes_away_is_an_error_that_resumes(hub: LoopbackHub, log: Log) -> None:
    hub.faults.drop_after["model.safetensors"] = [40_000] + [0] * 5
    log.downloads.start(NAME)
    failed = log.state("failed")
    assert isinstance(failed.error, NetworkError)
    assert failed.done_bytes < failed.total_bytes
    log.downloads.start(NAME)
    assert log.state("done").error is None
    assert hub.sent_bytes["model.safetensors"] == 300_000


def test_a_full_disk_is_an_error_that_names_the_sizes(
    hub: LoopbackHub, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = snapshot.shutil.disk_usage("/")
    monkeypatch.setattr(snapshot.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    log.downloads.start(NAME)
    error = log.state("failed").error
    assert isinstance(error, DoesNotFitError)
    assert "1.0 kB are free" in (error.cause or "")


def test_an_unknown_model_fails_and_a_wrong_name_is_refused_at_once(hub: LoopbackHub, log: Log) -> None:
    hub.repos.clear()
    log.downloads.start(NAME)
    assert isinstance(log.state("failed").error, ModelNotFoundError)
    with pytest.raises(UsageError):
        log.downloads.start("not a name")


def test_starting_twice_downloads_once(hub: LoopbackHub, log: Log) -> None:
    slowly(hub, 0.005)
    log.downloads.start(NAME)
    log.downloads.start(NAME)
    log.state("done")
    assert hub.sent_bytes["model.safetensors"] == 300_000


def test_closing_pauses_what_runs_and_the_next_process_goes_on(hub: LoopbackHub, log: Log) -> None:
    slowly(hub)
    begun(log)
    log.downloads.close(wait_seconds=10)
    assert log.downloads.statuses()[0].state == "paused"
    slowly(hub, 0.0)
    after = Log()
    after.downloads.start(NAME)
    assert after.state("done").folder == resolve(NAME, offline=True)
    assert not [each for each in threading.enumerate() if each.name == "macllm-download" and each.is_alive()]


def test_an_unexpected_failure_is_an_error_too(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr("macllm.hub.download", fail)
    log.downloads.start(NAME)
    error = log.state("failed").error
    assert error is not None
    assert "boom" in (error.cause or "")
