"""Versions appear whole, keep their bytes, and are never written twice."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from learner.digests import adapter_digest, sha256
from learner.records import ADAPTER_FILES, FileEntry, VersionManifest
from workers.versions.cache import VersionCache
from workers.versions.integrity import MissingVersionError, TamperedVersionError, VersionError, VersionExistsError
from workers.versions.store import VersionStore


def content(seed: int) -> dict[str, bytes]:
    return {
        "adapter_config.json": b"{}",
        "adapter_model.safetensors": bytes([seed % 256]) * 1000,
        "trainer.safetensors": bytes([seed % 256]) * 50,
    }


def describe(version: int, files: Mapping[str, bytes], /, **changes: Any) -> VersionManifest:
    fields: dict[str, Any] = {
        "job_id": "job",
        "module": "fast",
        "version": version,
        "learner_step": version * 10,
        "digest": adapter_digest(files),
        "files": {name: FileEntry(sha256=sha256(data), bytes=len(data)) for name, data in files.items()},
        "base_model": "model",
        "rank": 4,
        "created_at": datetime.now(UTC),
    }
    return VersionManifest(**{**fields, **changes})


@pytest.fixture
def store(tmp_path: Path) -> VersionStore:
    return VersionStore(tmp_path / "versions", "job")


def publish(store: VersionStore, version: int, seed: int | None = None) -> VersionManifest:
    files = content(version if seed is None else seed)
    return store.publish(describe(version, files), files)


def test_what_is_published_comes_back(store: VersionStore) -> None:
    manifests = [publish(store, version) for version in range(3)]
    assert store.versions("fast") == [0, 1, 2] and store.newest("fast") == 2 and store.newest("slow") is None
    assert store.manifest("fast", 1) == manifests[1]
    assert store.files("fast", 1) == content(1)
    assert set(store.adapter_files("fast", 2)) == set(ADAPTER_FILES)
    again = VersionStore(store.root, "job")
    assert again.files("fast", 2) == content(2)


def test_a_version_is_never_overwritten(store: VersionStore) -> None:
    first = publish(store, 0)
    assert publish(store, 0) == first  # the same bytes again: a repeated call, not another version
    with pytest.raises(VersionExistsError, match="job/fast/v0 was published with other bytes"):
        publish(store, 0, seed=9)
    assert store.files("fast", 0) == content(0)


def test_version_numbers_never_go_back(store: VersionStore) -> None:
    publish(store, 0)
    publish(store, 4)
    with pytest.raises(VersionExistsError, match="cannot follow version 4"):
        publish(store, 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"job_id": "other"}, "not a version of the job job"),
        ({"digest": "0" * 64}, r"\(adapter\) is not what was published"),
        ({"files": {}}, "its manifest lists"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(store: VersionStore, change: dict[str, Any], words: str) -> None:
    files = content(0)
    with pytest.raises(VersionError, match=words):
        store.publish(describe(0, files, **change), files)
    assert store.versions("fast") == []


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "", "manifest.json", "/etc/passwd", "a\0b"])
def test_names_stay_inside_the_version(store: VersionStore, name: str) -> None:
    files = {**content(0), name: b"x"}
    with pytest.raises(VersionError, match="cannot be the name"):
        store.publish(describe(0, files), files)
    publish(store, 0)
    with pytest.raises(VersionError, match="cannot be the name"):
        store.files("fast", 0, [name])


@pytest.mark.parametrize(("module", "version"), [("../fast", 0), ("fast", -1), ("fast", "0/../1")])
def test_modules_and_versions_are_checked_too(store: VersionStore, module: Any, version: Any) -> None:
    with pytest.raises(VersionError):
        store.manifest(module, version)


def test_tampered_bytes_are_refused_with_both_digests(store: VersionStore) -> None:
    publish(store, 0)
    path = store.root / "fast" / "v0" / "adapter_model.safetensors"
    path.write_bytes(b"evil")
    with pytest.raises(TamperedVersionError) as caught:
        store.adapter_files("fast", 0)
    error = copy.copy(caught.value)  # by the means through which it travels between processes
    assert error.file == "job/fast/v0/adapter_model.safetensors"
    assert error.expected == sha256(content(0)["adapter_model.safetensors"]) and error.actual == sha256(b"evil")
    assert error.expected in str(error) and error.actual in str(error)
    assert store.files("fast", 0, ["adapter_config.json"]) == {"adapter_config.json": b"{}"}
    path.unlink()
    with pytest.raises(TamperedVersionError, match="missing"):
        store.files("fast", 0)
    path.symlink_to(store.root / "fast" / "v0" / "trainer.safetensors")
    with pytest.raises(TamperedVersionError, match="a link"):
        store.files("fast", 0)


def test_another_versions_manifest_in_its_place_is_refused(store: VersionStore) -> None:
    for version in (0, 1):
        publish(store, version)
    folder = store.root / "fast"
    (folder / "v1" / "manifest.json").write_bytes((folder / "v0" / "manifest.json").read_bytes())
    with pytest.raises(TamperedVersionError, match="that of job/fast/v0"):
        store.files("fast", 1)
    (folder / "v1" / "manifest.json").write_text("{}")
    with pytest.raises(TamperedVersionError, match="not one"):
        store.manifest("fast", 1)


def test_missing_versions_and_files_are_named(store: VersionStore) -> None:
    with pytest.raises(MissingVersionError, match="job/fast/v7"):
        store.files("fast", 7)
    publish(store, 0)
    with pytest.raises(VersionError, match="has no file 'nothing'"):
        store.files("fast", 0, ["nothing"])


def test_a_crash_before_the_rename_leaves_no_version(store: VersionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(store, 0)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "rename", crash)
        publish(store, 1)
    assert store.versions("fast") == [0]
    (store.root / "fast" / ".unfinished-x").mkdir()
    assert store.discard_after("fast", 0) == []
    assert sorted(os.listdir(store.root / "fast")) == ["v0"]
    publish(store, 1)


def test_what_was_never_committed_is_discarded_and_may_be_published_anew(store: VersionStore) -> None:
    for version in range(4):
        publish(store, version)
    assert store.discard_after("fast", 1) == [2, 3]
    assert store.versions("fast") == [0, 1]
    publish(store, 2, seed=77)
    assert store.files("fast", 2) == content(77)
    assert store.discard_after("fast", -1) == [0, 1, 2]


def test_retain_keeps_the_newest_whatever_is_asked(store: VersionStore) -> None:
    for version in range(5):
        publish(store, version)
    assert store.retain("fast", {1}) == [0, 2, 3]
    assert store.versions("fast") == [1, 4]
    assert store.retain("slow", {1}) == []


def test_of_many_threads_that_publish_one_version_one_succeeds(store: VersionStore) -> None:
    outcomes: list[object] = []

    def run(seed: int) -> None:
        try:
            outcomes.append(publish(store, 0, seed).digest)
        except VersionExistsError:
            outcomes.append(None)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [outcome for outcome in outcomes if outcome is not None]
    assert store.manifest("fast", 0).digest == winner
    assert sorted(os.listdir(store.root / "fast")) == ["v0"]


class Source:
    """A version store at the other end of a wire, and how often it was asked."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.data = dict(files)
        self.asked: list[tuple[str, ...]] = []

    def __call__(self, names: tuple[str, ...]) -> Mapping[str, bytes]:
        self.asked.append(names)
        return {name: self.data[name] for name in names}


def test_the_cache_fetches_once_and_only_what_is_missing(tmp_path: Path) -> None:
    files = content(1)
    manifest, source, cache = describe(1, files), Source(files), VersionCache(tmp_path)
    assert cache.files(manifest, source, ADAPTER_FILES) == {name: files[name] for name in ADAPTER_FILES}
    assert cache.files(manifest, source) == files
    assert cache.files(manifest, source) == files
    assert source.asked == [ADAPTER_FILES, ("trainer.safetensors",)]
    assert cache.metrics()["version_cache_misses_total"] == 3


def test_cached_bytes_that_went_bad_are_fetched_again(tmp_path: Path) -> None:
    files = content(1)
    manifest, source, cache = describe(1, files), Source(files), VersionCache(tmp_path)
    cache.files(manifest, source)
    (tmp_path / sha256(files["adapter_model.safetensors"])).write_bytes(b"evil")
    assert cache.files(manifest, source) == files
    assert source.asked[1:] == [("adapter_model.safetensors",)] and cache.corrupt_total == 1


def test_bytes_that_arrive_bad_are_an_error_and_are_not_kept(tmp_path: Path) -> None:
    files = content(1)
    manifest, source, cache = (
        describe(1, files),
        Source({**files, "adapter_config.json": b"evil"}),
        VersionCache(tmp_path),
    )
    with pytest.raises(TamperedVersionError, match=r"adapter_config\.json"):
        cache.files(manifest, source)
    assert list(tmp_path.iterdir()) == []


def test_the_cache_keeps_its_bound_and_the_version_in_use(tmp_path: Path) -> None:
    cache = VersionCache(tmp_path, max_bytes=2200)
    for version in range(4):
        files = content(version)
        assert cache.files(describe(version, files), Source(files)) == files
        for path in tmp_path.iterdir():  # make "least recently" visible to the file system's clock
            os.utime(path, (path.stat().st_mtime - 10, path.stat().st_mtime - 10))
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2200
    source = Source(content(3))
    cache.files(describe(3, content(3)), source)
    assert source.asked == []
    assert VersionCache(tmp_path, max_bytes=1).files(describe(9, content(9)), Source(content(9))) == content(9)
