"""Particles and stores in ``s3://``, on moto's server."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from moto.server import ThreadedMotoServer
from star_sets import StarSet, files_of, random_set

from drgn_ray.errors import StoreError
from drgn_ray.particles import store as store_module
from drgn_ray.particles.store import ParticleStore
from jobs.cli import main

BUCKET = "s3://particles"
TINY = "--enc-dim 16 --enc-layers 1 --dec-dim 16 --dec-layers 1 --pe-dim 4"


@pytest.fixture(scope="module")
def s3() -> Iterator[fsspec.AbstractFileSystem]:
    """A bucket, and the environment that finds it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        files = fsspec.filesystem("s3")
        files.mkdir(BUCKET)
        yield files
        fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()


@pytest.fixture
def tiny_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 images of 16 px a shard."""
    monkeypatch.setattr(store_module, "SHARD_BYTES", 64 * 16 * 16 * 2)


@pytest.fixture
def large(tmp_path: Path) -> StarSet:
    """200 images: four shards."""
    return random_set(tmp_path / "set", count=200)


def uploaded(s3: fsspec.AbstractFileSystem, star: Path, folder: str) -> str:
    s3.put(str(star.parent) + "/", f"{folder}/", recursive=True)
    return f"{folder}/{star.name}"


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_store_made_in_s3_of_particles_in_s3_is_the_local_one(
    workers: str, s3: fsspec.AbstractFileSystem, large: StarSet, tmp_path: Path, tiny_shards: None, two_cpus: None
) -> None:
    star = large.write()
    assert main(["convert", str(star), "-o", str(tmp_path / "x.zarr"), "--workers", "0"]) == 0
    folder = f"{BUCKET}/whole{workers}"
    remote = uploaded(s3, star, folder)
    assert main(["convert", remote, "-o", f"{folder}/x.zarr", "--workers", workers]) == 0
    s3.get(f"{folder}/x.zarr", str(tmp_path / "fetched.zarr"), recursive=True)
    here, there = files_of(tmp_path / "x.zarr"), files_of(tmp_path / "fetched.zarr")
    del here["zarr.json"], there["zarr.json"]  # their command and sources name the places
    assert here == there
    store, local = ParticleStore(f"{folder}/x.zarr"), ParticleStore(tmp_path / "x.zarr")
    assert store.info.contrast == local.info.contrast
    np.testing.assert_array_equal(store.read_images(slice(50, 150)), local.read_images(slice(50, 150)))
    assert store.table().equals(local.table())


def test_training_from_a_store_in_s3_is_that_from_a_local_one(
    s3: fsspec.AbstractFileSystem, store_path: Path, tmp_path: Path, two_cpus: None, capsys: pytest.CaptureFixture[str]
) -> None:
    remote = f"{BUCKET}/trained.zarr"
    s3.put(str(store_path), remote, recursive=True)
    train = ["train", "--no-analysis", "--zdim", "2", "-n", "2", *TINY.split(), "-o"]
    for name, place in (("here", str(store_path)), ("there", remote)):
        assert main([*train, str(tmp_path / name), place, "--workers", "0"]) == 0
    assert losses(tmp_path / "there") == losses(tmp_path / "here")
    if "DRGN_RAY_LONG" in os.environ:
        assert main([*train, str(tmp_path / "on_ray"), remote, "--workers", "1", "--cpus-per-worker", "1"]) == 0
        np.testing.assert_allclose(losses(tmp_path / "on_ray"), losses(tmp_path / "here"), rtol=0.02)

    assert main([*train, f"{BUCKET}/run", remote, "--workers", "0"]) == 2
    assert "this is a URL; pass the path of a folder" in capsys.readouterr().err


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["train_epoch/loss"] for line in lines if line["kind"] == "epoch"]


def test_an_interrupted_conversion_in_s3_goes_on(
    s3: fsspec.AbstractFileSystem, large: StarSet, tiny_shards: None, capsys: pytest.CaptureFixture[str]
) -> None:
    large.images[180, 0, 0] = np.nan
    star = large.write()
    output = f"{BUCKET}/interrupted.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("drgn_ray.particles.normalise.NUM_SAMPLES", 2)  # so that the bad image is met late
        assert main(["convert", str(star), "-o", output, "--workers", "0"]) == 2
        with pytest.raises(StoreError, match="its conversion did not finish"):
            ParticleStore(output)
        done = s3.glob(f"{output}/progress/*.done")
        assert len(done) == 2
    large.images[180, 0, 0] = 0
    large.write()
    capsys.readouterr()
    assert main(["convert", str(star), "-o", output, "--workers", "0"]) == 2  # the stack is another file now
    assert "with other settings or sources is here" in capsys.readouterr().err
    assert main(["convert", str(star), "-o", output, "--workers", "0", "--overwrite"]) == 0
    assert len(ParticleStore(output)) == 200


def test_a_missing_shard_in_s3_is_refused(s3: fsspec.AbstractFileSystem, large: StarSet, tiny_shards: None) -> None:
    output = f"{BUCKET}/missing.zarr"
    assert main(["convert", str(large.write()), "-o", output, "--workers", "0"]) == 0
    s3.rm(f"{output}/images/c/2/0/0")
    with pytest.raises(StoreError, match="its file images/c/2/0/0 is missing; convert again"):
        ParticleStore(output)


def test_stacks_that_are_not_in_s3_are_named(
    s3: fsspec.AbstractFileSystem, large: StarSet, capsys: pytest.CaptureFixture[str]
) -> None:
    star = large.write_table()
    s3.put(str(star), f"{BUCKET}/alone/particles.star")
    assert main(["convert", f"{BUCKET}/alone/particles.star", "-o", f"{BUCKET}/alone/x.zarr"]) == 2
    assert f"the first is {BUCKET}/alone/stack.mrcs; pass --datadir" in capsys.readouterr().err


def test_a_bucket_that_is_not_there_is_no_traceback(
    s3: fsspec.AbstractFileSystem, large: StarSet, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(large.write()), "-o", "s3://nowhere/x.zarr", "--workers", "0"]) == 2
    assert main(["convert", "s3://nowhere/particles.star", "-o", f"{BUCKET}/y.zarr"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_storage_that_does_not_answer_is_no_traceback(
    s3: fsspec.AbstractFileSystem,
    large: StarSet,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    star = str(large.write())
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    assert main(["convert", f"{BUCKET}/x.star", "-o", "x.zarr"]) == 2
    assert main(["convert", star, "-o", f"{BUCKET}/y.zarr", "--workers", "0"]) == 2
    assert main(["train", f"{BUCKET}/y.zarr", "-o", "never"]) == 2
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    errors = capsys.readouterr().err
    assert errors.count("its storage does not answer (Unable to locate credentials)") == 3
    assert "Traceback" not in errors
