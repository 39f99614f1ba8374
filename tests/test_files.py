"""Files are written whole or not at all, folders are checked first, and locked by one process."""

import errno
import json
import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from monai_gmr.bundle.classification import HeadedCSVSaver
from monai_gmr.data.conversion import write_medmnist
from monai_gmr.data.phantoms import write_phantoms
from monai_gmr.files import FolderLock, check_folder, replacing, write_json, write_rows, write_text
from monai_gmr.handlers.best_checkpoint import write_checkpoint
from monai_gmr.rotation_report.records import ViewRecord, ViewRecords
from monai_gmr.utils import ConfigurationError


def _save_predictions(path):
    saver = HeadedCSVSaver(path.parent, f"{path.stem}.csv", ["class"])
    saver.save(np.array([2.0]), {"filename_or_obj": "cell 1"})
    saver.finalize()


# every writer of the library, and the suffix of its file
WRITERS = {
    "text": (lambda path: write_text("table", path), ".md"),
    "rows": (lambda path: write_rows([{"view": "upright"}], path), ".csv"),
    "json": (lambda path: write_json({"p": 1}, path), ".json"),
    "checkpoint": (lambda path: write_checkpoint({"weight": torch.ones(4)}, path), ".pt"),
    "predictions": (_save_predictions, ".csv"),
    "records": (lambda path: ViewRecords(path, {"network": "a"}), ".jsonl"),
    "arrays": (
        lambda path: write_medmnist(
            path, {"test_images": np.zeros((1, 8, 8), np.uint8), "test_labels": np.zeros((1, 1))}, overwrite=True
        ),
        ".npz",
    ),
}


def _open_on_a_full_disk(file, mode="r", *arguments, _open=open, **options):
    """``open`` that leaves half a file."""
    if "w" in mode:
        with _open(file, "wb") as half:
            half.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return _open(file, mode, *arguments, **options)


@pytest.mark.parametrize("moment", ["while it is written", "when it is renamed"])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(writer, moment, tmp_path, monkeypatch):
    write, end = WRITERS[writer]
    path = tmp_path / f"file{end}"
    path.write_bytes(b"of before")
    if moment == "when it is renamed":
        monkeypatch.setattr("os.replace", _raise(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    else:
        monkeypatch.setattr("builtins.open", _open_on_a_full_disk)
        monkeypatch.setattr("io.open", _open_on_a_full_disk)
    with pytest.raises(
        ConfigurationError, match=rf"file{end} cannot be written \(No space left on device\): free some"
    ):
        write(path)
    monkeypatch.undo()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"of before"


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_in_the_place_of_the_folder_is_one_sentence(writer, tmp_path):
    write, end = WRITERS[writer]
    (tmp_path / "folder").touch()
    with pytest.raises(ConfigurationError, match="cannot be written"):
        write(tmp_path / "folder" / "below" / f"file{end}")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
def test_what_the_system_said_is_found_below_torchs_own_error():
    with pytest.raises(OSError, match="No space left"), open("/dev/full", "wb") as file:
        torch.save({"weight": torch.zeros(1_000_000)}, file)


def test_a_record_of_a_view_that_finds_no_room_is_one_sentence(tmp_path, monkeypatch):
    records = ViewRecords(tmp_path / "net.jsonl", {"network": "a"})
    records.add(ViewRecord("upright", ["a"], np.zeros(1), 0.1, 1.0, {}))
    monkeypatch.setattr("builtins.open", _raise(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    with pytest.raises(ConfigurationError, match=r"net.jsonl cannot be written \(No space left"):
        records.add(ViewRecord("upright", ["b"], np.zeros(1), 0.1, 1.0, {}))
    monkeypatch.undo()
    assert ViewRecords(tmp_path / "net.jsonl", {"network": "a"}).cases == ["a"]


def test_phantoms_that_find_no_room_are_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("nibabel.save", _raise(OSError(errno.EDQUOT, "Disk quota exceeded")))
    with pytest.raises(ConfigurationError, match=r"nii.gz cannot be written \(Disk quota exceeded\)"):
        write_phantoms(tmp_path / "data", 1, 1, 1, (16, 16), progress=False)
    assert not list(tmp_path.rglob("*.nii.gz"))


@pytest.mark.parametrize("error", [KeyError, ValueError, KeyboardInterrupt])
def test_errors_that_are_not_the_systems_pass_as_they_are(error, tmp_path):
    def write():
        with replacing(tmp_path / "file") as temporary:
            temporary.touch()
            raise error

    with pytest.raises(error):
        write()
    assert not list(tmp_path.iterdir())


def test_two_writers_of_one_file_do_not_share_a_temporary_one(tmp_path):
    with replacing(tmp_path / "a.nii.gz") as first, replacing(tmp_path / "a.nii.gz") as second:
        assert first != second
        assert first.name.endswith("a.nii.gz")
        first.write_text("1")
        second.write_text("2")
    texts = [f"{number}" * 100_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: write_text(text, tmp_path / "table.md"), texts * 4))
    assert (tmp_path / "table.md").read_text() in texts
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.nii.gz", "table.md"]


def _unwritable_folder(tmp_path, case):
    (tmp_path / "file").touch()
    return {
        "a file in its place": tmp_path / "file",
        "a file as its parent": tmp_path / "file" / "below",
        "a file further up": tmp_path / "file" / "far" / "below",
        "no folder may be made there": Path("/proc/models"),
        "too long a name": tmp_path / ("n" * 300),
    }[case]


@pytest.mark.parametrize(
    "case",
    [
        "a file in its place",
        "a file as its parent",
        "a file further up",
        "no folder may be made there",
        "too long a name",
    ],
)
def test_folders_that_cannot_be_written_are_one_sentence(case, tmp_path):
    if case.startswith("no folder") and not Path("/proc").is_dir():
        pytest.skip("Linux has a folder in which root cannot make another")
    folder = _unwritable_folder(tmp_path, case)
    with pytest.raises(ConfigurationError, match=r"^ckpt_dir=.* cannot be written \(.+\): give another --ckpt_dir"):
        check_folder(folder, "ckpt_dir")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_folder_that_is_there_is_tried(code, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.TemporaryFile", _raise(OSError(code, os.strerror(code))))
    with pytest.raises(ConfigurationError, match=rf"output_dir=.* cannot be written \({os.strerror(code)}\)"):
        check_folder(tmp_path, "output_dir")


def _raise(error):
    def function(*_, **__):
        raise error

    return function


HOLD = """
import sys, time
from monai_gmr.files import FolderLock
lock = FolderLock(sys.argv[1])
print("held", flush=True)
time.sleep(100)
"""


def test_a_folder_belongs_to_one_process_until_it_ends(tmp_path, forked_python):
    holder = subprocess.Popen([forked_python, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        for folder in (tmp_path, tmp_path / ".", tmp_path / "sub" / ".."):
            (tmp_path / "sub").mkdir(exist_ok=True)
            with pytest.raises(ConfigurationError, match=r"is in use by another run .* give another --ckpt_dir"):
                FolderLock(folder)
        (tmp_path / "sub").rmdir()
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    # a killed process leaves the file, but not the lock
    lock, again = FolderLock(tmp_path), FolderLock(tmp_path)
    again.release()
    lock.release()


def test_a_released_folder_is_free_for_other_processes(tmp_path, forked_python):
    lock, _ = FolderLock(tmp_path), FolderLock(tmp_path)
    lock.release()
    once = HOLD.replace("time.sleep(100)", "")
    done = subprocess.run([forked_python, "-c", once, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout == "held\n", done.stderr


def test_a_file_system_without_locks_is_a_line_in_the_log(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(
        "filelock.FileLock.acquire", _raise(NotImplementedError("FileSystem does not appear to support flock"))
    )
    FolderLock(tmp_path)
    assert "has no locks" in caplog.text


def test_rows_have_a_column_for_each_key_and_json_no_numbers_that_are_not_finite(tmp_path):
    write_rows([{"view": "upright", "dice": 0.5}, {"view": "m [100]"}], tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text() == "view,dice\nupright,0.5\nm [100],\n"
    write_json({"p": float("nan"), "spread": [float("inf"), 1.0]}, tmp_path / "table.json")
    assert json.loads((tmp_path / "table.json").read_text()) == {"p": None, "spread": [None, 1.0]}
