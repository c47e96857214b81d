"""Checkpoints are read without running code, found by their step, and files are written whole or not at all."""

import io
import logging
import os
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_transformer.checkpoints import (
    CheckpointError,
    UndrawnWeights,
    checkpoints_in,
    newest_checkpoint,
    read_checkpoint,
    replacing,
)


def save(path: Path, step: int, **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {"weight": torch.full((2,), float(step))}, "global_step": step, **more}, path)
    return path


def test_reads_tensors_and_plain_data(tmp_path: Path) -> None:
    path = save(tmp_path / "a.ckpt", 7, hyper_parameters={"names": ["a", None], "rate": 0.5})
    for given in (path, str(path)):
        content = read_checkpoint(given)
        assert content["hyper_parameters"] == {"names": ["a", None], "rate": 0.5}
        assert content["state_dict"]["weight"].tolist() == [7.0, 7.0]


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    trap = {"state_dict": {}, "global_step": 1, "trap": Trap(tmp_path / "sprung")}
    torch.save(trap, tmp_path / "trap.ckpt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"trap.ckpt is not a checkpoint file, .* or holds more than plain data"):
        read_checkpoint(tmp_path / "trap.ckpt")
    assert not (tmp_path / "sprung").exists()
    torch.load(tmp_path / "trap.ckpt", weights_only=False)  # the trap works
    assert (tmp_path / "sprung").exists()


def archive(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in files.items():
            file.writestr(f"archive/{name.replace('_', '.')}", content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"\x80\x02}q\x00.", bytes(range(256)) * 40, archive(), archive(data_pkl=b"\x80\x02garbage."),
     archive(data_pkl=b"\x80\x02(", version=b"3"), archive(data_pkl=b"\x80\x02N.", version=b"3")],
)  # fmt: skip
def test_garbage_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x.ckpt is not a "):
        read_checkpoint(tmp_path / "x.ckpt")


def test_every_cut_of_a_file_is_damaged(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.ckpt", 1).read_bytes()
    for end in range(0, len(whole), len(whole) // 25):
        (tmp_path / "cut.ckpt").write_bytes(whole[:end])
        with pytest.raises(CheckpointError, match=r"cut.ckpt is not a checkpoint file, or is damaged"):
            read_checkpoint(tmp_path / "cut.ckpt")


def test_what_is_not_there_or_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"checkpoint .*gone.ckpt does not exist; give a .ckpt file, the folder"):
        read_checkpoint(tmp_path / "gone.ckpt")
    with pytest.raises(CheckpointError, match="is not a checkpoint file"):
        read_checkpoint(tmp_path)
    for content in ({"weight": torch.ones(2)}, [1, 2], {"state_dict": {}}):
        torch.save(content, tmp_path / "x.ckpt")
        with pytest.raises(CheckpointError, match=r"x.ckpt is not a Lightning checkpoint: it has no state_dict or"):
            read_checkpoint(tmp_path / "x.ckpt")


def test_newest_is_the_highest_step_whatever_name_and_time(tmp_path: Path) -> None:
    for time, (name, step) in enumerate({"z": 100, "checkpoints/b": 1000, "step=999": 500, "old": 3}.items()):
        os.utime(save(tmp_path / f"{name}.ckpt", step), (time, time))
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "b.ckpt"
    assert [one.step for one in checkpoints_in(tmp_path)] == [3, 100, 500, 1000]
    save(tmp_path / "step=9.ckpt", 2000)
    assert newest_checkpoint(str(tmp_path)).name == "step=9.ckpt"  # as a copy into the run's own folder
    save(tmp_path / "last.ckpt", 2000)
    assert newest_checkpoint(tmp_path).name == "step=9.ckpt"  # not its double


def test_an_average_is_taken_only_if_there_is_nothing_else(tmp_path: Path) -> None:
    average = save(tmp_path / "average.ckpt", 50, averaged_from={"a": 50, "b": 40})
    assert newest_checkpoint(tmp_path) == average
    own = save(tmp_path / "a.ckpt", 10)
    assert newest_checkpoint(tmp_path) == own
    assert [(one.path, one.is_average) for one in checkpoints_in(tmp_path)] == [(average, True), (own, False)]


def test_a_damaged_newest_gives_way_to_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = [save(tmp_path / "checkpoints" / f"step={step}.ckpt", step) for step in (1, 2)]
    killed = tmp_path / "checkpoints" / "step=3.ckpt"
    killed.write_bytes(good[1].read_bytes()[:500])
    with caplog.at_level(logging.WARNING, "lit_transformer"):
        assert newest_checkpoint(tmp_path) == good[1]
    (record,) = caplog.records
    assert record.getMessage().startswith(f"passing over a checkpoint: {killed} is not a checkpoint file")
    for path in good:
        path.unlink()
    with pytest.raises(CheckpointError, match=r"no readable checkpoint .* train with fit first"):
        newest_checkpoint(tmp_path)


def lightning_order(path: Path, step: int, **more: Any) -> Path:
    """A file with the keys in the order in which Lightning writes them."""
    torch.save({"epoch": 0, "global_step": step, "state_dict": {"weight": torch.ones(2)}, **more}, path)
    return path


def test_the_step_is_found_at_the_front_without_reading_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [0, 255, 256, 70_000, 2**31 - 1]
    for step in steps:
        lightning_order(tmp_path / f"{step % 7}-{step}.ckpt", step, loops={"global_step": 1})
    expected = checkpoints_in(tmp_path)
    assert [one.step for one in expected] == steps
    assert all(read_checkpoint(one.path)["global_step"] == one.step for one in expected)
    monkeypatch.setattr("lit_transformer.checkpoints.read_checkpoint", lambda path: pytest.fail(f"{path} was read"))
    assert checkpoints_in(tmp_path) == expected


def test_what_is_not_at_the_front_is_read(tmp_path: Path) -> None:
    lightning_order(tmp_path / "average.ckpt", 9, averaged_from={"a": 9})
    torch.save({"epoch": {"global_step": 3}, "global_step": 5, "state_dict": {}}, tmp_path / "nested.ckpt")
    torch.save({"loops": {"global_step": 3}, "global_step": 6, "state_dict": {}}, tmp_path / "other.ckpt")
    lightning_order(tmp_path / "long.ckpt", 2**40)
    found = {one.path.stem: (one.step, one.is_average) for one in checkpoints_in(tmp_path)}
    assert found == {"average": (9, True), "nested": (5, False), "other": (6, False), "long": (2**40, False)}


def test_a_file_with_a_flipped_bit_at_the_front_gives_way(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good, bad = (lightning_order(tmp_path / f"{step}.ckpt", step) for step in (1, 2))
    content = bytearray(bad.read_bytes())
    content[content.index(b"global_step")] ^= 1
    bad.write_bytes(content)
    with caplog.at_level(logging.WARNING, "lit_transformer"):
        assert newest_checkpoint(tmp_path) == good
    assert [record.getMessage().startswith(f"passing over a checkpoint: {bad}") for record in caplog.records] == [True]


def test_undrawn_weights_leave_the_random_numbers_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    with UndrawnWeights():
        layers = [torch.nn.Linear(3, 4), torch.nn.Embedding(5, 2), torch.nn.LayerNorm(3), torch.nn.Bilinear(2, 2, 2)]
        torch.nn.init.xavier_uniform_(layers[0].weight)
        torch.nn.init.trunc_normal_(tensor=layers[1].weight)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(layers[2].weight, torch.ones(3))  # what is not random is set
    layers[0].reset_parameters()
    assert not torch.equal(torch.get_rng_state(), before)  # and drawing works again


def test_undrawn_weights_draw_what_no_file_holds() -> None:
    """Buffers that are not persistent, such as random features with a seed of their own."""

    class Features(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            source = torch.Generator().manual_seed(3)
            self.register_buffer("noise", torch.full((4, 3), 7.0).normal_(generator=source), persistent=False)
            self.register_buffer("evened", torch.nn.init.uniform_(torch.full((9,), 7.0)), persistent=False)

    expected = torch.randn(4, 3, generator=torch.Generator().manual_seed(3))
    with UndrawnWeights():
        features = Features()
    torch.testing.assert_close(features.noise, expected)
    assert (features.evened < 1).all()


def test_undrawn_weights_let_truncated_normals_end_whatever_was_in_memory() -> None:
    before = torch.get_rng_state()
    weight = torch.nn.Parameter(torch.full((1000,), 1e30))
    with UndrawnWeights():
        torch.nn.init.trunc_normal_(weight)
    assert weight.abs().max() <= 2 or weight.isnan().all()  # torch 2.8 leaves no number there
    assert torch.equal(torch.get_rng_state(), before)


def test_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"no readable checkpoint \(\*.ckpt\) in "):
        newest_checkpoint(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a file may not change under a mapping")
def test_tensors_stay_on_disk_until_they_are_used(tmp_path: Path) -> None:
    path = save(tmp_path / "big.ckpt", 1, more=torch.zeros(2**20, dtype=torch.uint8))
    content = read_checkpoint(path)
    start = path.read_bytes().index(bytes(2**16))
    with path.open("r+b") as file:
        file.seek(start + 2**16)
        file.write(b"\x01" * 2**16)
    assert content["more"].sum() == 2**16  # what is on disk now, not what was there when the file was opened


def test_replacing_writes_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.txt"
    with replacing(path) as partial:
        partial.write_text("one")
        assert not path.exists()
    assert path.read_text() == "one"
    with pytest.raises(UnicodeEncodeError), replacing(path) as partial:
        partial.write_text("two \ud800", encoding="utf-8")
    assert path.read_text() == "one"
    assert list(path.parent.iterdir()) == [path]


def test_replacing_keeps_links(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link, file = tmp_path / "link", tmp_path / "elsewhere" / "file"
    link.symlink_to("elsewhere/file")
    for text in ("one", "two"):  # into nothing yet, then over what is there
        with replacing(link) as partial:
            partial.write_text(text)
            assert partial.parent == file.parent
        assert link.is_symlink()
        assert file.read_text() == text
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.skipif(sys.platform != "linux", reason="the names are those of Linux")
def test_replacing_writes_into_a_redirected_output(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as file:
        place = Path(f"/proc/self/fd/{file.fileno()}")
        with replacing(place) as partial:
            partial.write_text("here")
    assert (tmp_path / "out").read_text() == "here"


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="there is no folder in memory")
def test_replacing_writes_all_or_nothing_in_memory_too() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder) / "x.txt"
        path.write_text("one")
        with pytest.raises(UnicodeEncodeError), replacing(path) as partial:
            partial.write_text("two \ud800", encoding="utf-8")
        assert path.read_text() == "one"


def test_replacing_writes_into_devices() -> None:
    with replacing(Path(os.devnull)) as partial:
        assert partial == Path(os.devnull)
        partial.write_text("gone")
    assert not Path(os.devnull).is_file()
