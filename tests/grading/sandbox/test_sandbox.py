"""The sandbox: hostile programs end at a limit, see and reach nothing, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from grading.sandbox.isolation import check_packages, isolation_gaps
from grading.sandbox.limits import Account, Limits, Usage, exceeded, own_time
from grading.sandbox.sandbox import MARK, ROOT, SCRATCH, Sandbox, SandboxError, namespace_command

QUICK = Limits(seconds=1.5, cpu_seconds=20, memory_mib=150, disk_mib=8, threads=30, output_kib=64)
PATIENT = Limits(seconds=20, cpu_seconds=20, memory_mib=150, disk_mib=8, threads=30, output_kib=64)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can run something as another user")
needs_namespaces = pytest.mark.skipif(not namespace_command(), reason="namespaces are not allowed here")


@pytest.fixture
def sandbox():
    with Sandbox() as sandbox:
        yield sandbox


def run(sandbox: Sandbox, script: str, limits: Limits = PATIENT):
    return sandbox.run([sys.executable, "-I", "-S", "-c", script], limits)


def test_an_honest_program(sandbox):
    script = (
        "import sys; open('out.txt', 'w').write('42'); print('hello'); print('careful', file=sys.stderr); sys.exit(3)"
    )
    outcome = run(sandbox, script)
    assert (outcome.exit_code, outcome.limit, outcome.succeeded) == (3, None, False)
    assert sorted(outcome.tail.splitlines()) == ["careful", "hello"]
    assert sandbox.collect("out.txt", max_bytes=2) == b"42"
    assert run(sandbox, "print(open('out.txt').read())").tail == "42\n"


def test_a_signal_is_told_as_a_shell_does(sandbox):
    assert run(sandbox, "import os; os.kill(os.getpid(), 11)").exit_code == 128 + 11
    assert run(sandbox, "import os; os._exit(7)").exit_code == 7


HOGS = {
    "endless loop": ("while True: pass", "took longer"),
    "sleeps": ("import time; time.sleep(100)", "took longer"),
    "ignores signals": (
        "import signal, time\n"
        "for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}: signal.signal(number, signal.SIG_IGN)\n"
        "while True: time.sleep(0.1)",
        "took longer",
    ),
    "stops itself": ("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", "took longer"),
    "many files": ("for i in range(10**7): open(f'{i}', 'w').close()", "to the disk"),
    "large files": ("for i in range(10**3): open(f'{i}', 'wb').write(bytes(2**21))", "to the disk"),
    "files without a name": (
        "import os\nkept = []\nfor i in range(30):\n"
        "    kept.append(open('f', 'wb')); kept[-1].write(bytes(2**20)); kept[-1].flush(); os.unlink('f')\n"
        "while True: pass",
        "to the disk",
    ),
    "deep folders": (
        "import os, time\nfor _ in range(40): os.mkdir('d' * 200); os.chdir('d' * 200)\ntime.sleep(60)", "to the disk"
    ),
    "prints without end": ("while True: print('x' * 1000)", "it printed more"),
    "hogs memory": ("x = []\nwhile True: x.append(bytes(10**6) + b'1')", "of memory"),
    "hogs memory in children": (
        "import os, time\nfor _ in range(8):\n    if not os.fork():\n"
        "        x = bytes(40 * 10**6).replace(b'0', b'1'); x = x + b'1'; time.sleep(60)\ntime.sleep(60)",
        "of memory",
    ),
    "fork bomb": (
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", "processes or threads"
    ),
    "threads": (
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,)).start()",
        "processes or threads",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOGS)
def test_a_hog_is_stopped_with_a_sentence(name):
    script, words = HOGS[name]
    limits = QUICK if "took longer" in words else PATIENT
    with Sandbox() as sandbox:
        start = time.monotonic()
        outcome = run(sandbox, script, limits)
        assert outcome.limit and words in outcome.limit, outcome
        assert time.monotonic() - start < 60  # by the clock, on a machine that may be busy
        assert not sandbox.processes()
    assert not sandbox.folder.exists()


@pytest.mark.parametrize(
    "usage, printed, words",
    [
        (Usage(memory_mib=151), 0, "of memory"),
        (Usage(threads=31), 0, "processes or threads"),
        (Usage(), 2**16 + 1, "it printed more"),
        (Usage(), 0, "it took longer"),
    ],
)
def test_of_several_limits_at_once_time_is_the_last_to_be_told(usage, printed, words):
    assert words in exceeded(Account(replace(usage, cpu_seconds=30), own_seconds=2), printed, QUICK)


def test_computing_time_counts_all_processes(sandbox):
    script = "import os\nfor _ in range(3): os.fork()\nwhile True: pass"
    outcome = run(sandbox, script, Limits(seconds=30, cpu_seconds=1))
    assert outcome.limit and "computing time" in outcome.limit and outcome.seconds < 20


PIN = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
COMPUTE = PIN + "import time\nwhile time.process_time() < 0.6: pass"


@contextmanager
def busy_core(programs: int):
    """The first core with so many programs on it that never wait, each in a session of its own, as of another user."""
    script = PIN + "print(flush=True)\nwhile True: pass"
    hogs = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, start_new_session=True)
        for _ in range(programs)
    ]
    try:
        for hog in hogs:
            hog.stdout.readline()
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.communicate()


def test_what_waits_for_a_busy_machine_is_not_stopped(sandbox):
    """0.6 s of computing, on a core that five others want: its own time is little more, by the clock it is 3.6 s."""
    with busy_core(5):
        outcome = run(sandbox, COMPUTE, replace(PATIENT, seconds=2))
    assert outcome.succeeded, outcome
    assert outcome.seconds > 2, "the core was not busy"


def test_a_busy_machine_is_no_excuse_for_doing_nothing(sandbox):
    """Limits of 0.6 s, as the core is kept busy that long; the sentence has whole seconds."""
    with busy_core(2):
        outcome = run(sandbox, PIN + "import time; time.sleep(100)", replace(PATIENT, seconds=0.6))
        assert outcome.limit == "it took longer than 1 s" and outcome.seconds < 20
        outcome = run(sandbox, PIN + "while True: pass", replace(PATIENT, seconds=0.6))
        assert outcome.limit == "it took longer than 1 s"


@pytest.mark.parametrize(
    "computed, waited, own",
    [
        (0, {}, 10),  # it sleeps, or the kernel does not tell how long it waits
        (10, {1: 0}, 10),  # one thread computes
        (4, {1: 6}, 4),  # ... on a core that others want as well
        (0, {1: 10}, 0),
        (2, {1: 8, 2: 3}, 2),  # the one that waits longest keeps the others waiting
        (20, {1: 9, 2: 9, 3: 9, 4: 9}, 10),  # its own threads keep each other from both cores
        (-5, {}, 10),  # one of its programs has ended
        (0, {3: -7}, 10),  # ... and another one has its number
        (0, {1: 11}, 0),
    ],
)
def test_waiting_for_others_is_not_its_own_time(monkeypatch, computed, waited, own):
    monkeypatch.setattr("grading.sandbox.limits.usable_cores", lambda: 2)
    before = Usage(cpu_seconds=100, waits=dict.fromkeys((1, 3), 50.0))
    waits = {thread: before.waits.get(thread, 0) + seconds for thread, seconds in waited.items()}
    assert own_time(before, Usage(cpu_seconds=100 + computed, waits=waits), 10) == own


DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        {inner}
        time.sleep(300)
    os._exit(0)
time.sleep(0.3)
print("done")
"""


def alive(token: str) -> list[psutil.Process]:
    """The processes that have the token in their command line, wherever they were started."""
    found = [process for process in psutil.process_iter(["cmdline", "status"]) if process.pid != os.getpid()]
    found = [process for process in found if token in " ".join(process.info["cmdline"] or ())]
    return [process for process in found if process.info["status"] != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("inner", ["pass", "os.close(1), os.close(2)", "os.execve('/bin/sleep', ['sleep', TOKEN], {})"])
@pytest.mark.parametrize("namespaces", [None, pytest.param(False, marks=needs_root)])
def test_no_daemon_survives(inner, namespaces):
    token = f"300.{time.time_ns()}"
    start = time.monotonic()
    with Sandbox(namespaces=namespaces) as sandbox:
        script = f"TOKEN = '{token}'\n" + DAEMON.format(inner=inner)
        outcome = sandbox.run(["/usr/bin/env", "python3", "-c", script], PATIENT)
        assert outcome.succeeded and outcome.tail == "done\n"
        assert not alive(token)
    assert time.monotonic() - start < 10


def test_no_network(sandbox):
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    script = (
        "import socket\nfor kind in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK):\n"
        "    try: socket.socket(kind, socket.SOCK_RAW if kind == 16 else socket.SOCK_STREAM)\n"
        "    except OSError as error: print(error.errno)\n"
        f"try: socket.create_connection(('127.0.0.1', {port}), 2); print('connected')\n"
        "except OSError: print('refused')\n"
        "a, b = socket.socketpair(); a.send(b'local'); print(b.recv(9))"
    )
    assert run(sandbox, script).tail.splitlines() == ["1", "1", "1", "refused", "b'local'"]
    server.settimeout(0.05)
    with pytest.raises(TimeoutError):
        server.accept()


@needs_root
@needs_namespaces
def test_it_sees_neither_the_repository_nor_what_is_hidden(tmp_path):
    results = tmp_path / "results.json"
    results.write_text("{}")
    for path in (tmp_path, results):
        path.chmod(0o777)
    for hidden in ([tmp_path], [results]):
        with Sandbox(hidden) as sandbox:
            for path in (results, ROOT / "task_1_controlnet" / "train.py", ROOT / ".git" / "HEAD", ROOT / "tests"):
                script = f"import os\np = {str(path)!r}\nprint(os.listdir(p) if os.path.isdir(p) else open(p).read())"
                assert run(sandbox, script).exit_code == 1, path
            run(sandbox, f"open({str(results)!r}, 'w').write('forged')")
            assert isolation_gaps(sandbox) == []
    assert results.read_text() == "{}"


@needs_root
def test_without_namespaces_permissions_hide_and_gaps_are_told(tmp_path):
    closed, open_ = tmp_path / "closed", tmp_path / "open"
    for path in (closed, open_):
        path.mkdir()
        (path / "secret").write_text("secret")
    closed.chmod(0o750)
    for parent in (tmp_path, *tmp_path.parents[:-2]):
        parent.chmod(0o755)
    with Sandbox([closed, open_], namespaces=False) as sandbox:
        sandbox.hidden = [closed, open_]
        try:
            gaps = isolation_gaps(sandbox)
        except SandboxError as error:
            if "error while loading shared libraries: libpython" in str(error):
                pytest.skip("this Python's library lies where the sandbox's user cannot read it, which the grader says")
            raise
        assert gaps == [f"{open_} can be read"]
        command = [
            "/bin/sh",
            "-c",
            f"cat {closed}/secret; cat {open_}/secret; echo x > {open_}/secret; kill -9 {os.getpid()}",
        ]
        tail = sandbox.run(command, PATIENT).tail
        assert "secret" in tail and tail.count("denied") + tail.count("not permitted") == 3, tail
    assert (open_ / "secret").read_text() == "secret"


def test_the_same_user_is_told(tmp_path):
    with Sandbox(other_user=False) as sandbox:
        assert "the code runs as the grader's own user" in isolation_gaps(sandbox)
        assert run(sandbox, "print(open('/proc/self/status').read())").tail.count("0000000000000000") >= 5


@needs_namespaces
def test_an_environment_behind_a_link_is_found_also_where_the_link_is_hidden(tmp_path, monkeypatch):
    link = tmp_path / "in" / ".venv"
    link.parent.mkdir()
    link.symlink_to(sys.prefix)
    python = link / Path(sys.executable).relative_to(sys.prefix)
    monkeypatch.setattr(sys, "prefix", str(link))
    (tmp_path / "secret").write_text("secret")
    with Sandbox([tmp_path]) as sandbox:
        script = f"import os, numpy; print(numpy.__name__, os.listdir({str(tmp_path)!r}))"
        assert sandbox.run([str(python), "-c", script], PATIENT).tail == "numpy ['in']\n"


def test_missing_packages_are_no_fault_of_a_hand_in(sandbox, monkeypatch):
    check_packages(sandbox)
    monkeypatch.setattr("grading.sandbox.isolation.NEEDED", ("numpy", "no_such_package"))
    with pytest.raises(SandboxError, match=r"\(no_such_package\): install requirements.txt"):
        check_packages(sandbox)


def test_its_environment_is_clean(sandbox, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    outcome = run(sandbox, "import os; print(sorted(os.environ)); print(os.getcwd(), os.environ['HOME'])")
    assert "HF_TOKEN" not in outcome.tail and "PYTHONPATH" not in outcome.tail and MARK in outcome.tail
    assert outcome.tail.splitlines()[1] == f"{sandbox.work} {sandbox.work}"


@needs_root
def test_it_writes_only_where_it_may(sandbox):
    (sandbox.folder / "code.py").write_text("x = 1")
    script = (
        "import os\nfor path in ('../code.py', '../new.py', '/etc/x', '/usr/x', os.path.expanduser('~root/x')):\n"
        "    try: open(path, 'w').close(); print(path)\n"
        "    except OSError: pass\nprint(open('../code.py').read())"
    )
    assert run(sandbox, script).tail == "x = 1\n"
    assert (sandbox.folder / "code.py").read_text() == "x = 1"


def test_only_whole_files_of_its_own_are_collected(sandbox, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    script = f"""
import os
os.symlink({str(secret)!r}, 'link')
os.symlink('/etc', 'folder')
os.mkfifo('pipe')
os.mkdir('a'); os.mkdir('a/a'); open('a/a/a', 'w').write('deep')
open('one', 'w').write('1'); os.link('one', 'two')
open('large', 'w').truncate(10**6)
"""
    assert run(sandbox, script).succeeded
    assert sandbox.collect("a/a/a", 10) == b"deep"
    assert sandbox.collect("missing/x", 10) is None and sandbox.collect("a/b", 10) is None
    for name in ("link", "folder/passwd", "pipe", "a", "one", "two", "large", "one/x"):
        with pytest.raises(SandboxError, match=name):
            sandbox.collect(name, 10**5)


@pytest.mark.parametrize("namespaces, depth", [(None, 0), pytest.param(False, 1100, marks=needs_root)])
def test_everything_goes_at_the_end(namespaces, depth):
    places = [f"{folder}/left-behind-{time.time_ns()}" for folder in SCRATCH]
    script = (
        f"import os\nfor name in {places}:\n"
        "    try: os.mkdir(name); open(name + '/x', 'w').close(); os.chmod(name, 0)\n    except OSError: pass\n"
        "os.mkdir('closed'); open('closed/x', 'w').close(); os.chmod('closed', 0)\n"
        f"for _ in range({depth}): os.mkdir('d'); os.chdir('d')\n"
    )
    with Sandbox(namespaces=namespaces) as sandbox:
        outcome = sandbox.run(["/usr/bin/env", "python3", "-c", script], replace(PATIENT, disk_mib=32))
        assert outcome.succeeded, outcome
        assert sandbox.work.exists()
    assert not any(os.path.exists(path) for path in (sandbox.folder, *places))


def test_it_dies_with_the_grader(tmp_path):
    program = (
        "from grading.sandbox.sandbox import Limits, Sandbox\n"
        "with Sandbox() as s: s.run(['sleep', '12345'], Limits(seconds=60))"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # as it cannot clean up
    grader = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env=environment)

    def sleepers() -> list[psutil.Process]:
        return [p for p in psutil.process_iter(["cmdline"]) if (p.info["cmdline"] or []) == ["sleep", "12345"]]

    end = time.monotonic() + 20
    while not sleepers() and time.monotonic() < end:
        time.sleep(0.05)
    assert sleepers()
    grader.send_signal(signal.SIGKILL)
    grader.wait()
    while sleepers() and time.monotonic() < end:
        time.sleep(0.05)
    assert not sleepers()


@needs_root
def test_two_at_once_do_not_touch_each_other():
    with Sandbox() as one, Sandbox() as other:
        assert one.user != other.user
        outcomes = {}

        def spy() -> None:
            script = (
                f"import os, time\ntime.sleep(0.5)\ntry: print(os.listdir({str(other.work)!r}))\n"
                "except OSError: print('nothing')\ntry: os.kill(-1, 9)\nexcept OSError: print('nobody')"
            )
            outcomes["one"] = run(one, script)

        thread = threading.Thread(target=spy)
        thread.start()
        outcomes["other"] = run(other, "import time; open('mine', 'w').write('x'); time.sleep(1.2); print('done')")
        thread.join()
    assert outcomes["other"].succeeded and outcomes["other"].tail == "done\n"
    assert outcomes["one"].tail.startswith("nothing")


@needs_root
def test_no_two_share_a_user_and_a_closed_one_gives_it_back(monkeypatch):
    """Also while neither runs anything, of which a user could be told."""
    monkeypatch.setattr("grading.sandbox.sandbox.USERS", range(61184, 61186))
    for _ in range(3):
        with Sandbox() as one, Sandbox() as other:
            assert {one.user, other.user} == {61184, 61185}
            with pytest.raises(SandboxError, match="finds no user that is free"):
                Sandbox()
