"""The warm Python: what it forks runs as Python would run it, without rights, and knows nothing of what ran before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from grading.sandbox.limits import Limits, SandboxError
from grading.sandbox.sandbox import ROOT, Sandbox, namespace_command
from grading.sandbox.start import LIBRARIES, SOCKET, WarmProcess, start_python, warm_python, warm_socket
from grading.sandbox.trusted import GraderError, run_trusted

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root has a warm Python")
needs_namespaces = pytest.mark.skipif(not namespace_command(), reason="namespaces are not allowed here")
PATIENT = Limits(seconds=20, cpu_seconds=20, memory_mib=150, disk_mib=8, threads=8, output_kib=64)
QUICK = Limits(seconds=1.5, cpu_seconds=20, memory_mib=150, disk_mib=8, threads=30, output_kib=64)


@pytest.fixture(scope="module", autouse=True)
def warm():
    """One without PyTorch, which is not needed to see how programs start and end."""
    with warm_python({"PATH": os.environ["PATH"]}, ["json", "ctypes", "not_there"]) as there:
        assert there
        yield


@pytest.fixture
def sandbox():
    with Sandbox() as sandbox:
        yield sandbox


def run(sandbox: Sandbox, script: str, limits: Limits = PATIENT):
    return sandbox.run_python(["-c", script], limits)


def test_a_program_finds_what_python_would_give_it(tmp_path):
    (tmp_path / "beside.py").write_text("WORD = 'found'\n")
    script = (
        "import beside, os, sys\nprint(beside.WORD, __name__, sys.argv, os.getcwd(), os.environ['OMP_NUM_THREADS'])\n"
    )
    (tmp_path / "program.py").write_text(script)
    (tmp_path / "empty").mkdir()
    threads = os.environ.get("OMP_NUM_THREADS") or str(len(os.sched_getaffinity(0)))
    by_path = run_trusted([str(tmp_path / "program.py"), "--x", "1"], tmp_path / "empty", 20)
    expected = f"found __main__ {[str(tmp_path / 'program.py'), '--x', '1']} {tmp_path / 'empty'} {threads}\n"
    assert by_path == expected
    as_module = run_trusted(["-m", "program", "2"], tmp_path, 20)
    assert as_module.startswith("found __main__ ") and "'2']" in as_module
    assert run_trusted(["-c", "import sys; print(sys.argv, 1 + 1)", "a"], tmp_path, 20) == "['-c', 'a'] 2\n"


def test_how_it_ended_is_told(sandbox, tmp_path):
    assert run(sandbox, "import sys; print('bye'); sys.exit(3)").exit_code == 3
    assert run(sandbox, "import os; os._exit(7)").exit_code == 7
    assert run(sandbox, "import os; os.kill(os.getpid(), 11)").exit_code == 128 + 11
    assert run(sandbox, "import atexit; atexit.register(print, 'last words')").tail == "last words\n"
    failed = run(sandbox, "raise ValueError('lost')")
    assert failed.exit_code == 1 and failed.tail.splitlines()[-1] == "ValueError: lost"
    assert "warm.py" not in failed.tail
    with pytest.raises(GraderError, match="lost"):
        run_trusted(["-c", "raise SystemExit('lost')"], tmp_path, 10)


RIGHTS = """
import os
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
print([int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")])
print(status["NoNewPrivs"].strip(), status["Groups"].strip(), len(set(status["Uid"].split())), os.getuid() > 0)
print(sorted(os.listdir("/proc/self/fd"))[:-1], open("/proc/self/oom_score_adj").read().strip())
try: os.setuid(0)
except OSError as error: print(type(error).__name__)
"""


def test_nothing_is_left_of_the_rights_of_root(sandbox):
    outcome = run(sandbox, RIGHTS)
    assert outcome.tail.splitlines() == ["[0, 0, 0, 0, 0]", "1  1 True", "['0', '1', '2'] 1000", "PermissionError"]


def test_it_is_confined_as_a_cold_program_is(sandbox, tmp_path):
    """The same script says the same in both, of rights, files, network, environment and limits."""
    script = f"""
import os, resource, socket
print(sorted(name for name in os.environ if name != "LC_CTYPE"), os.getcwd(), len(os.listdir("/proc")) < 100)
for path in ({str(ROOT)!r}, {str(Path.home())!r}, {str(tmp_path)!r}, "/tmp"):
    try: print(path, sorted(os.listdir(path)))
    except OSError as error: print(path, type(error).__name__)
for kind in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK):
    try: socket.socket(kind)
    except OSError as error: print(error.errno)
names = ("CPU", "FSIZE", "NPROC", "NOFILE", "CORE")
print([resource.getrlimit(getattr(resource, f"RLIMIT_{{name}}")) for name in names])
open("out", "w").write("42")
"""
    warm = run(sandbox, script + RIGHTS)
    assert sandbox.collect("out", 2) == b"42"
    cold = sandbox.run([sys.executable, "-I", "-S", "-c", script + RIGHTS], PATIENT)
    assert warm.tail == cold.tail and warm.succeeded and cold.succeeded


HOGS = {
    "an endless loop": ("while True: pass", "took longer"),
    "sleeps": ("import time; time.sleep(100)", "took longer"),
    "a fork bomb": ("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", "processes or threads"),
    "hogs memory": ("x = []\nwhile True: x.append(bytes(10**6) + b'1')", "of memory"),
    "prints without end": ("while True: print('x' * 1000)", "it printed more"),
}


@pytest.mark.parametrize("name", HOGS)
def test_a_hog_is_stopped_with_a_sentence(sandbox, name):
    script, words = HOGS[name]
    outcome = run(sandbox, script, QUICK if "took longer" in words else PATIENT)
    assert outcome.limit and words in outcome.limit and not sandbox.processes()
    assert run(sandbox, "print('the next one')").tail == "the next one\n"


def test_no_daemon_survives(sandbox):
    script = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(300)\ntime.sleep(0.2)\nprint('done')"
    assert run(sandbox, script).tail == "done\n"
    assert not sandbox.processes()


SPOIL = """
import builtins, json, os, sys
token = "".join(["a-word-", "of-the-", "first-one"])
json.dumps = lambda *_: "patched"
builtins.len = lambda *_: 42
sys.modules["ctypes"].spoilt = True
sys.path.insert(0, "/spoilt")
os.environ["SPOILT"] = token
open("/tmp/spoilt", "w").write(token)
print(json.dumps([]), len("x"))
"""
LOOK = """
import json, os, sys, ctypes
print(json.dumps([]), len("x"), hasattr(ctypes, "spoilt"), "/spoilt" in sys.path, "SPOILT" in os.environ)
print(os.path.exists("/tmp/spoilt"))
"""


def test_each_fork_begins_where_the_first_one_began(sandbox):
    assert run(sandbox, SPOIL).tail == "patched 42\n"
    with Sandbox() as other:
        assert run(other, LOOK).tail.splitlines() == ["[] 1 False False False", "False"]


SCAN = """
import re
found = 0
with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
    for line in list(maps):
        start, end = (int(number, 16) for number in line.split()[0].split("-"))
        if line.split()[1].startswith("rw") and "[v" not in line:
            memory.seek(start)
            found += len(re.findall(b"[5]{40}", memory.read(end - start)))
print(found)
"""


def test_no_program_finds_what_another_was_told(sandbox):
    """Its arguments, say, which name a seed: they are read after the fork, never in the process that is forked."""
    assert int(sandbox.run_python(["-c", SCAN, "5" * 40], PATIENT).tail) > 0, "the scan finds what is there"
    with Sandbox() as other:
        assert run(other, SCAN).tail == "0\n"


def test_the_warm_memory_holds_no_code_of_this_repository(tmp_path):
    """Else a hand-in could call the judges, or read the solution there."""
    script = f"""
import sys
files = [(name, getattr(module, "__file__", None) or "") for name, module in sys.modules.items()]
print([name for name, file in files if file.startswith({str(ROOT)!r}) and "/.venv" not in file])
"""
    assert run_trusted(["-c", script], tmp_path, 20) == "['grading_sandbox_confine']\n"
    own = {path.name for path in ROOT.iterdir()} | {"diffusion", "evaluate", "train", "utils", "fill50k", "metrics"}
    assert not [name for name in LIBRARIES if name.split(".")[0] in own]


@needs_namespaces
def test_a_hand_in_does_not_find_the_warm_python(sandbox):
    script = f"""
import os, socket
print(os.path.exists({warm_socket()!r}), {SOCKET!r} in os.environ)
try: socket.socket(socket.AF_UNIX).connect({warm_socket()!r})
except OSError as error: print(type(error).__name__)
"""
    assert run(sandbox, script).tail.splitlines() == ["False False", "FileNotFoundError"]


def test_another_user_can_ask_for_nothing(tmp_path):
    """Not even where the folder is open, as it is not: without namespaces its permissions keep others out."""
    address, target = Path(warm_socket()), tmp_path / "written"
    assert address.parent.stat().st_mode & 0o077 == 0
    request = {"arguments": ["-c", f"open({str(target)!r}, 'w')"], "cwd": "/", "environment": {}, "confinement": None}
    script = f"""
import os, socket
connection = socket.socket(socket.AF_UNIX)
connection.connect({str(address)!r})
data = {json.dumps(request).encode()!r}
try:
    socket.send_fds(connection, [len(data).to_bytes(4, "big")], [1])
    connection.sendall(data)
    print(connection.recv(1))
except OSError as error:
    print(b"")
"""
    address.parent.chmod(0o755)
    address.chmod(0o777)
    try:
        command = ["/usr/bin/env", "python3", "-c", script]
        asked = subprocess.run(
            command, user=65000, group=65000, extra_groups=[], capture_output=True, text=True, cwd="/"
        )
    finally:
        address.parent.chmod(0o700)
    assert asked.stdout == "b''\n", asked
    time.sleep(0.2)
    assert not target.exists()


def test_a_program_ends_when_nobody_waits_for_it_any_more(tmp_path):
    script = "import os, time\nprint(os.getpid(), flush=True)\nos.fork()\ntime.sleep(300)"
    for end in (WarmProcess.kill, lambda process: process.connection.close()):
        output, entry = os.pipe()
        process = start_python(["-c", script], tmp_path, dict(os.environ), entry)
        os.close(entry)
        with os.fdopen(output) as printed:
            pid = int(printed.readline())
            end(process)
            assert printed.read() == ""  # its child, too, has closed it
        until = time.monotonic() + 10
        while psutil.pid_exists(pid) and time.monotonic() < until:
            time.sleep(0.02)
        assert not psutil.pid_exists(pid)


def test_one_that_is_there_already_is_used():
    address = warm_socket()
    with warm_python({}, ["not_needed"]) as there:
        assert there and warm_socket() == address
    assert warm_socket() == address
    assert run_trusted(["-c", "print('it serves')"], ROOT, 20) == "it serves\n"


def test_when_the_warm_python_ends_it_is_said(tmp_path, monkeypatch):
    monkeypatch.delenv(SOCKET)
    with warm_python({"PATH": os.environ["PATH"]}, ["json"]):
        servers = [child for child in psutil.Process().children() if any("warm.py" in word for word in child.cmdline())]
        server = max(servers, key=psutil.Process.create_time)
        with open(tmp_path / "out", "wb") as out:
            code = "import time; print('up', flush=True); time.sleep(300)"
            process = start_python(["-c", code], tmp_path, dict(os.environ), out.fileno())
            # Killed before, between its two forks, the one that was begun would outlive it and tell its end as usual.
            end = time.monotonic() + 60
            while (tmp_path / "out").read_text() != "up\n" and time.monotonic() < end:
                time.sleep(0.01)
            server.kill()
            server.wait()
            with pytest.raises(SandboxError, match="has lost a program"):
                process.wait(60)
            with pytest.raises(SandboxError, match="start the grader again"):
                start_python(["-c", "pass"], tmp_path, dict(os.environ), out.fileno())


def test_as_another_user_than_root_programs_start_cold(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert warm_socket() is None
    with warm_python({}) as there:
        assert not there
    with open(tmp_path / "out", "wb") as out:
        process = start_python(["-c", "print('cold')"], tmp_path, dict(os.environ), out.fileno())
        assert isinstance(process, subprocess.Popen) and process.wait(60) == 0
    assert (tmp_path / "out").read_text() == "cold\n"


def test_a_socket_that_nobody_listens_at_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv(SOCKET, str(tmp_path / "none"))
    with pytest.raises(SandboxError, match="cannot be reached"):
        run_trusted(["-c", "pass"], tmp_path, 10)
