"""One byte of a store is changed, or one of its files is not there: refused, never read as something else."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered_store import BOX_SIZE, NUM_PARTICLES, SHARD_ROWS, write_numbered
from zarr.storage import LocalStore

from drgn_ray import patience
from drgn_ray.errors import StorageError, StoreError
from drgn_ray.particles import store as store_module
from drgn_ray.particles.store import ParticleStore, StoreWriter, reopen

EXAMPLES = int(os.environ.get("DRGN_RAY_FUZZ_EXAMPLES", "120"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 1,000 numbered images in 4 shards, which every test leaves as it was."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "SHARD_BYTES", SHARD_ROWS * BOX_SIZE**2 * 2)
        path = tmp_path_factory.mktemp("damaged") / "whole.zarr"
        write_numbered(path).finish()
    return path


@pytest.fixture(scope="module")
def files(whole: Path) -> list[Path]:
    """All of its files, of which there are some 50."""
    return sorted(path for path in whole.rglob("*") if path.is_file())


@contextmanager
def changed(path: Path, content: bytes | None) -> Iterator[None]:
    """Give a file another content, or take it away, for a while."""
    before = path.read_bytes()
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def everything(path: Path) -> dict[str, object]:
    """All that can be read."""
    store = ParticleStore(path)
    tables = {name: table.to_pydict() for name, table in store.tables().items()}
    columns = {name: values.tobytes() for name, values in store.columns.items()}
    return {"info": store.info, "images": store.read_images(slice(0, len(store))).tobytes(), **columns, **tables}


@settings(max_examples=EXAMPLES, deadline=None)
@given(data=st.data(), change=st.integers(1, 255))
def test_a_changed_byte_anywhere_is_refused(data: st.DataObject, change: int, whole: Path, files: list[Path]) -> None:
    path = data.draw(st.sampled_from([path for path in files if path != whole / "zarr.json"]))
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= change
    with changed(path, bytes(content)), pytest.raises(StoreError) as refused:
        everything(whole)
    name = str(path.relative_to(whole))
    assert name in str(refused.value) or name.split("/")[0] in ("images", *str(refused.value).split())


@settings(max_examples=EXAMPLES, deadline=None)
@given(data=st.data(), change=st.integers(1, 255))
def test_a_changed_byte_of_the_attributes_is_refused_or_changes_nothing(
    data: st.DataObject, change: int, whole: Path
) -> None:
    """Some bytes say nothing: the case of an exponent's letter, say."""
    before = everything(whole)
    content = bytearray((whole / "zarr.json").read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= change
    with changed(whole / "zarr.json", bytes(content)):
        try:
            assert everything(whole) == before
        except StoreError as error:
            assert str(whole) in str(error)  # noqa: PT017 (both ends are right)


def test_a_changed_setting_that_is_still_json_is_refused(whole: Path) -> None:
    content = (whole / "zarr.json").read_text()
    assert '"scale": 1.0' in content
    with changed(whole / "zarr.json", content.replace('"scale": 1.0', '"scale": 2.0').encode()):
        with pytest.raises(StoreError, match=r"its file zarr.json is damaged; convert the particles again"):
            ParticleStore(whole)


def test_every_file_is_missed(whole: Path, files: list[Path]) -> None:
    for path in files:
        with changed(path, None), pytest.raises(StoreError) as refused:
            everything(whole)
        name = str(path.relative_to(whole))
        assert name == "zarr.json" or f"its file {name} is missing" in str(refused.value)


@pytest.mark.parametrize(
    "name", ["images/c/9/0/0", "images/c/0/0/1", "rotation/c/1/0/0", "other.parquet", "new/zarr.json"]
)
def test_a_file_too_many_is_refused(name: str, whole: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(whole, tmp_path / "copy.zarr"))
    (copy / name).parent.mkdir(parents=True, exist_ok=True)
    (copy / name).write_bytes(b"text")
    with pytest.raises(StoreError) as refused:
        ParticleStore(copy)
    assert str(refused.value) == f"{copy}: the file {name} is no part of it; take that file away."


def test_what_file_managers_leave_is_not_minded(whole: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(whole, tmp_path / "copy.zarr"))
    (copy / ".DS_Store").write_bytes(b"text")
    (copy / "images" / ".nfs0001").write_bytes(b"text")
    assert everything(copy).keys() == everything(whole).keys()


@pytest.mark.parametrize("mark", [False, None], ids=["not set", "not there"])
def test_a_store_without_its_mark_is_refused(mark: bool | None, whole: Path) -> None:
    content = json.loads((whole / "zarr.json").read_text())
    del content["attributes"]["complete"]
    if mark is not None:
        content["attributes"]["complete"] = mark
    with changed(whole / "zarr.json", json.dumps(content).encode()), pytest.raises(StoreError, match=r"whole\.zarr: "):
        ParticleStore(whole)


def test_damaged_settings_of_an_unfinished_store_are_not_gone_on_with(small_shards: None, tmp_path: Path) -> None:
    path = tmp_path / "half.zarr"
    write_numbered(path, shards=[0, 2])
    attributes = (path / "zarr.json").read_text()
    (path / "zarr.json").write_text(attributes.replace('"scale": 1.0', '"scale": 2.0'))
    with pytest.raises(StoreError, match=r"half.zarr: its file zarr.json is damaged; pass --overwrite to begin again"):
        StoreWriter(str(path)).unfinished_info()


def test_every_small_file_and_table_has_its_digest(whole: Path, files: list[Path]) -> None:
    """Chunks have Zarr's; of what else there is, none is left out."""
    digests = set(zarr.open_group(whole, mode="r").attrs["sha256"])
    names = {str(path.relative_to(whole)) for path in files}
    chunks = {name for name in names if "/c/" in name}
    assert digests == names - chunks - {"zarr.json"}
    assert len(np.unique([name.split("/")[0] for name in chunks])) + 2 == len(digests) + 1
    assert NUM_PARTICLES > SHARD_ROWS


def test_storage_that_is_away_for_a_while_is_waited_for_and_never_read_as_zeros(
    whole: Path,
    tmp_path: Path,
    once_it_waits: Callable[[Callable[[], object]], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(patience, "RETRY_SECONDS", 0.05)
    path, away = tmp_path / "store.zarr", tmp_path / "away"
    shutil.copytree(whole, path)
    store = ParticleStore(path)
    images, rows = store.read_images(slice(5, 900)), ParticleStore(whole).columns["source_row"]
    for read, before in (
        (lambda: store.read_images(slice(5, 900)), images),
        (lambda: reopen(str(path)).read_images(slice(5, 900)), images),
        (lambda: store.columns["source_row"], rows),
    ):
        path.rename(away)
        once_it_waits(lambda: away.rename(path))
        assert (read() == before).all()
    assert re.search(r"store\.zarr: waiting for its storage \(images/c/\d/0/0 is not there\)", caplog.text)

    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.2)
    (path / "images" / "c" / "1" / "0" / "0").unlink()
    with pytest.raises(StorageError, match=r"its storage failed for \d+ s \(images/c/1/0/0 is not there\)"):
        store.read_images(slice(5, 900))


@pytest.mark.parametrize("name", ["images/c/1/0/0", "rotation/c/0/0/0"])
def test_a_chunk_that_is_away_as_it_is_read_and_back_at_once_is_not_read_as_zeros(
    name: str, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "RETRY_SECONDS", 0.05)
    before, store = ParticleStore(whole).read(slice(0, NUM_PARTICLES)), ParticleStore(whole)
    missed: list[str] = []
    get = LocalStore.get

    async def flicker(self: LocalStore, key: str, *where: Any, **how: Any) -> Any:
        if key == name and not missed:
            missed.append(key)
            return None
        return await get(self, key, *where, **how)

    monkeypatch.setattr(LocalStore, "get", flicker)
    found = store.read(slice(0, NUM_PARTICLES))
    assert missed == [name]
    for column, values in before.items():
        assert (found[column] == values).all(), column
