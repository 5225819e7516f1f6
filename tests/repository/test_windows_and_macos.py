"""Students have Windows and macOS, too: neither was at hand, so what is missing there is taken away here."""

from __future__ import annotations

import ast
import contextlib
import errno
import os
import pickle
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import train
from fill50k import load_data
from finetune.data.cache import Encodings, Samples
from finetune.run import checkpoints, stopping
from folders import fill, list_in
from pictures import CaptionedImages, Joined, SubjectImages, Variants
from processes import BASE, ROOT, call

# What students run, and nothing that only teachers do.
STUDENT_CODE = [
    "kit", "finetune", "task_1_controlnet", "task_2_lora", "grading/checks", "grading/files", "grading/hand_in",
    "grading/handed_out", "grading/report",
]  # fmt: skip
POSIX_MODULES = {"resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "posix", "syslog", "crypt"}
POSIX_NAMES = {
    "os": {
        "fork", "forkpty", "getuid", "geteuid", "getgid", "getegid", "setsid", "setuid", "killpg", "getpgid", "nice",
        "sched_getaffinity", "sched_setaffinity", "uname", "getloadavg", "sync", "fchmod", "fchown", "chown", "chroot",
        "mkfifo", "wait", "sysconf", "statvfs", "O_NOFOLLOW", "O_NONBLOCK", "O_SYNC", "O_CLOEXEC", "O_DIRECTORY",
    },
    "signal": {
        "SIGKILL", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGCHLD", "SIGSTOP", "SIGCONT", "SIGTSTP",
        "SIGPIPE", "alarm", "setitimer", "pause", "pthread_sigmask", "sigwait",
    },
}  # fmt: skip


def student_files() -> list[Path]:
    return sorted(path for folder in STUDENT_CODE for path in (ROOT / folder).rglob("*.py"))


def guarded(tree: ast.Module) -> set[int]:
    """The lines of what stands in a `try`."""
    tries = [node for node in ast.walk(tree) if isinstance(node, ast.Try)]
    return {
        part.lineno
        for one in tries
        for statement in one.body
        for part in ast.walk(statement)
        if hasattr(part, "lineno")
    }


def posix_only(path: Path) -> list[str]:
    """Where a file needs a module, or a name of `os` or `signal`, that Windows has not."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    safe = guarded(tree)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = {name.name.partition(".")[0] for name in node.names} & POSIX_MODULES
        elif isinstance(node, ast.ImportFrom):
            names = {(node.module or "").partition(".")[0]} & POSIX_MODULES
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names = {node.attr} & POSIX_NAMES.get(node.value.id, set())
        else:
            continue
        found += [f"{path.relative_to(ROOT)}:{node.lineno} {name}" for name in names if node.lineno not in safe]
    return found


def test_what_students_run_needs_nothing_that_windows_has_not():
    files = student_files()
    assert len(files) > 60
    assert not [place for path in files for place in posix_only(path)]


def test_the_search_finds_what_it_is_for(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "module.py").write_text(
        "import fcntl\nimport os, signal\ntry:\n    import resource\nexcept ImportError:\n    resource = None\n"
        "os.killpg(1, signal.SIGKILL)\n"
    )
    found = sorted(posix_only(tmp_path / "module.py"))
    assert found == ["module.py:1 fcntl", "module.py:7 SIGKILL", "module.py:7 killpg"]


# ---------------------------------------------------------------------------------------------------------------------
# A training where folders cannot be opened, open files cannot be replaced, and few signals are known


def in_use(path: Path) -> str | None:
    """What of it this process has open or mapped."""
    whole = os.path.realpath(path)
    held = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # another thread has closed it meanwhile: not held
            held.append(os.readlink(os.path.join("/proc/self/fd", name)))
    with open("/proc/self/maps") as maps:
        held += [line.split(maxsplit=5)[5].rstrip("\n") for line in maps if line.count("/") and len(line.split()) > 5]
    return next((name for name in held if name == whole or name.startswith(whole + os.sep)), None)


@pytest.fixture
def windows(monkeypatch):
    """As Windows refuses: each call that it would not do raises what it would raise."""
    real = SimpleNamespace(open=os.open, fsync=os.fsync, replace=os.replace, unlink=os.unlink)
    fcntl = pytest.importorskip("fcntl")

    def require_free(*paths: object) -> None:
        for path in paths:
            used = in_use(path)
            if used:
                raise PermissionError(errno.EACCES, "The process cannot access the file: it is being used", used)

    def open_file(path, flags, *arguments, **more):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real.open(path, flags, *arguments, **more)

    def fsync(descriptor):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        real.fsync(descriptor)

    def replace(source, target, **more):
        if os.path.isdir(target):
            raise PermissionError(errno.EACCES, "Access is denied", str(target))
        require_free(source, target)
        real.replace(source, target, **more)

    def unlink(path, **more):
        require_free(path)
        real.unlink(path, **more)

    monkeypatch.setattr(shutil, "_use_fd_functions", False)
    for name in POSIX_NAMES["os"]:
        monkeypatch.delattr(os, name, raising=False)
    for name, function in {"open": open_file, "fsync": fsync, "replace": replace, "unlink": unlink}.items():
        monkeypatch.setattr(os, name, function)
    monkeypatch.setattr(os, "rename", replace)
    monkeypatch.setattr(os, "remove", unlink)
    known = {name: getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGABRT", "Signals", "signal")}
    monkeypatch.setattr(stopping, "signal", SimpleNamespace(**known))


FLAGS = [
    "--pretrained_model_name_or_path", BASE, "--dataset_name", "rendered", "--resolution", "64", "--max_train_samples",
    "4", "--train_batch_size", "2", "--gradient_accumulation_steps", "1", "--conditioning_channels", "8", "8", "8", "8",
    "--validation_steps", "0", "--checkpointing_steps", "1", "--checkpoints_total_limit", "1",
    "--resume_from_checkpoint", "latest",
]  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc; on Windows other tests show it")
def test_a_training_runs_resumes_and_ends_as_windows_allows(windows, tmp_path):
    for steps in ("2", "3"):
        status, said = call(train.main, *FLAGS, "--output_dir", str(tmp_path), "--max_train_steps", steps)
        assert status == 0, said
    assert "Resuming from" in said
    assert (tmp_path / "controlnet" / "diffusion_pytorch_model.safetensors").is_file()
    assert [path.name for path in tmp_path.glob("*checkpoint-*")] == ["checkpoint-3"]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_the_stand_in_refuses_what_windows_refuses(windows, tmp_path):
    np.save(tmp_path / "a.npy", np.arange(4))
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    with pytest.raises(PermissionError):
        os.replace(tmp_path / "a.npy", tmp_path / "b.npy")
    with pytest.raises(PermissionError):
        os.open(tmp_path, os.O_RDONLY)
    del mapped
    os.replace(tmp_path / "a.npy", tmp_path / "b.npy")
    assert (tmp_path / "b.npy").is_file()


def test_a_folder_that_a_killed_process_left_behind_is_no_hindrance(tmp_path):
    """Killed between two renames: the old content still lies under another name."""
    for content in ("first", "second", "third"):
        checkpoints.write_folder(
            tmp_path / "model", lambda folder, text=content: (folder / "a").write_text(text) and None
        )
        (tmp_path / ".model.old").mkdir()
        (tmp_path / ".model.old" / "a").write_text("older")
    assert (tmp_path / "model" / "a").read_text() == "third"


# ---------------------------------------------------------------------------------------------------------------------
# Workers that are started anew, as on Windows and macOS, get their data sets pickled


def pickled(data):
    return pickle.loads(pickle.dumps(data))


def test_encodings_are_mapped_again_and_not_copied(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    np.save(folder / "latents.npy", np.ones((4, 4, 64, 64), np.float32))
    np.save(folder / "embeddings.npy", np.ones((1, 77, 8), np.float32))
    np.save(folder / "prompt_of_sample.npy", np.zeros(4, np.int64))
    (folder / "prompts.json").write_text('["gold circle"]')
    samples = Samples(None, 64, Encodings(folder))
    assert len(pickle.dumps(samples)) < 2000
    assert pickled(samples)[3]["text"] == "gold circle" and isinstance(pickled(samples).encodings.latents, np.memmap)


def test_every_data_set_reaches_a_new_worker(tmp_path):
    pairs = fill(tmp_path / "pairs", "0.png", "c/0.png")
    list_in(pairs, {"file_name": "0.png", "conditioning_image_file_name": "c/0.png", "text": "a"})
    pictures = list_in(fill(tmp_path / "pictures", "0.png"), {"file_name": "0.png", "text": "a"})
    subject = SubjectImages(pictures, "a cat")
    columns = ("image", "conditioning_image", "text")
    for data in (
        load_data("rendered", *columns, 2),
        load_data(str(pairs), *columns),
        Variants(CaptionedImages(None, str(pictures), "image", "text", None), True, True),
        Joined([Variants(subject, False, False), subject]),
    ):
        there, here = pickled(data)[0], data[0]
        assert there["text"] == here["text"] and there["image"].tobytes() == here["image"].tobytes()
