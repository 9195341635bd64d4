"""Checkpoints: what goes in comes out, on any mesh; damaged and foreign ones are told of, none is half there."""

import contextlib
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wind_jax.training.checkpoint import Checkpointer, _Barrier, _failures
from wind_jax.training.mesh import make_mesh, parameter_sharding
from wind_jax.training.state import TrainState


def state(mesh, step=7):
    kernel = jax.random.normal(jax.random.key(step), (128, 256))
    tree = {"kernel": kernel, "bias": jnp.ones(5)}
    whole = TrainState(jnp.int32(step), tree, jax.tree.map(lambda a: a + 1, tree), {"mu": tree})
    return jax.device_put(whole, parameter_sharding(mesh, whole))


def opened(directory, config=None, **options):
    return Checkpointer(directory, config or {}, **options)


def filled(directory, steps, config=None, **options):
    with opened(directory, config, **options) as checkpointer:
        for step in steps:
            checkpointer.save(step, state(make_mesh(), step), {"batches": {"next": step}})


def restore(checkpointer, mesh):
    abstract = jax.eval_shape(lambda: state(make_mesh()))
    return checkpointer.restore(abstract, parameter_sharding(mesh, abstract))


def names(directory):
    return sorted(p.name for p in directory.iterdir())


@pytest.mark.parametrize("count", [8, 4, 2, 1])
def test_restores_bit_equal_on_fewer_devices(tmp_path, count):
    saved = state(make_mesh(data=2, fsdp=4))
    with opened(tmp_path, {"width": 3}) as checkpointer:
        assert checkpointer.latest is None
        checkpointer.save(7, saved, {"batches": {"next": 4}, "seconds": 1.5})
    mesh = make_mesh(data=1, fsdp=count, devices=jax.devices()[:count])
    with opened(tmp_path, {"width": 3}) as checkpointer:
        step, restored, data = restore(checkpointer, mesh)
    assert (step, data) == (7, {"batches": {"next": 4}, "seconds": 1.5})
    jax.tree.map(np.testing.assert_array_equal, restored, saved)
    kernel = restored.params["kernel"]
    assert {shard.data.size for shard in kernel.addressable_shards} == {kernel.size // count}


def test_keeps_the_newest_and_those_of_round_steps(tmp_path):
    filled(tmp_path, range(1, 8), keep=2, keep_every=3)
    assert names(tmp_path) == ["3", "6", "7"]


def test_a_save_that_was_cut_short_is_no_checkpoint_and_goes(tmp_path):
    filled(tmp_path, [1])
    shutil.copytree(tmp_path / "1", tmp_path / "2.orbax-checkpoint-tmp")
    with opened(tmp_path) as checkpointer:
        assert checkpointer.latest == 1
        checkpointer.save(3, state(make_mesh(), 3), {})
    assert names(tmp_path) == ["1", "3"]


def damage(step, how):
    files = sorted((p for p in (step / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    if how == "bit":
        data = bytearray(files[-1].read_bytes())
        data[len(data) // 2] ^= 1
        files[-1].write_bytes(data)
    elif how == "half":
        files[-1].write_bytes(files[-1].read_bytes()[: files[-1].stat().st_size // 2])
    elif how == "gone":
        shutil.rmtree(step / "state")
    else:
        (step / "config" / "metadata").write_text("{")
        (step / "data" / "metadata").write_text("{")


# Where orbax gives up it leaves threads and coroutines behind.
orbax_gives_up = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@orbax_gives_up
@pytest.mark.parametrize("how", ["bit", "half", "gone", "json"])
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(tmp_path, how):
    filled(tmp_path, [1, 2], {"width": 3})
    damage(tmp_path / "2", how)
    with opened(tmp_path, {"width": 3}) as checkpointer:
        with pytest.warns(RuntimeWarning, match="step 2 .* is not good.*the one before"):
            step, restored, data = restore(checkpointer, make_mesh())
        assert (step, data) == (1, {"batches": {"next": 1}})
        jax.tree.map(np.testing.assert_array_equal, restored, state(make_mesh(), 1))
        checkpointer.save(2, state(make_mesh(), 2), {})  # the run gets there again
    assert names(tmp_path) == ["1", "2", "2.broken"]


def test_without_a_good_checkpoint_nothing_begins_anew(tmp_path):
    """What is wrong with all may pass, such as too little memory: they stay, and a start after it finds them."""
    filled(tmp_path, [1, 2])
    saved = shutil.copytree(tmp_path, tmp_path.parent / "saved")
    for step in (1, 2):
        damage(tmp_path / f"{step}", "gone")
    none = pytest.raises(ValueError, match=r"found steps \[2, 1\], and left them as they are. that of step 2")
    for _ in range(2):
        with opened(tmp_path) as checkpointer, none:
            restore(checkpointer, make_mesh())
        assert names(tmp_path) == ["1", "2"]
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    with opened(tmp_path) as checkpointer:
        assert restore(checkpointer, make_mesh())[0] == 2


@contextlib.contextmanager
def largest_file(size):
    """No file of this process grows beyond so many bytes: what a full disk is to a writer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@orbax_gives_up
def test_a_failure_leaves_the_save_under_way_whole(tmp_path):
    """And asks no other process how theirs went."""
    checkpointer = opened(tmp_path)
    checkpointer.save(1, state(make_mesh(), 1), {})
    checkpointer.settle = checkpointer._attempt = None
    checkpointer.__exit__(KeyboardInterrupt)
    assert names(tmp_path) == ["1"]


@orbax_gives_up
def test_a_full_disk_fails_the_save_and_no_more(tmp_path):
    with opened(tmp_path) as checkpointer:
        checkpointer.save(1, state(make_mesh(), 1), {})
        checkpointer.settle()
        told = pytest.warns(RuntimeWarning, match=r"step 2 could not be saved.*last good checkpoint is that of step 1")
        with largest_file(2**14), told:
            checkpointer.save(2, state(make_mesh(), 2), {})
            checkpointer.settle()
        assert checkpointer.latest == 1
        checkpointer.save(3, state(make_mesh(), 3), {})
    assert names(tmp_path) == ["1", "3"]  # and nothing of 2 takes up room


def test_processes_at_different_barriers_wait_no_more_and_say_why():
    met = []
    barrier = _Barrier(lambda key, seconds: met.append((key, seconds)) or [key, "written"])

    def save():
        try:
            raise OSError(28, "No space left on device")
        finally:  # as orbax does
            barrier(key="ended", timeout_ms=2000)

    assert "No space left" in _failures(save)
    with pytest.raises(_Barrier.Apart):
        barrier(key="written", timeout_ms=2000)  # where the other would be found, but the two are no more of one save
    assert met == [("ended", 2.0)]
    _Barrier(lambda key, seconds: [key, key])(key="written", timeout_ms=2000)


def test_another_config_is_refused_by_name(tmp_path):
    filled(tmp_path, [1], {"model.widths": (3, 4), "model.depth": 1})
    with pytest.raises(ValueError, match=r"model.depth is 2, there it is 1"):
        Checkpointer(tmp_path, {"model.widths": (3, 4), "model.depth": 2})


def test_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is not writable"):
        Checkpointer(tmp_path / "file" / "checkpoints", {})
