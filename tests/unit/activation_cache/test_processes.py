"""Stores of several processes: at once, killed, forked, without room on the disk."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from hf_freeze.activation_cache.housekeeping import clear, list_stores, prune
from hf_freeze.activation_cache.store import ActivationStore
from tests.unit.activation_cache.rows import FINGERPRINT, num_right, put, run_python, start_python

pytestmark = pytest.mark.distributed


def test_every_value_verifies_after_ten_kills(tmp_path: Path) -> None:
    code = """
for trial in range(10):
    child = os.fork()
    if child == 0:
        while True:
            numbers = range(random.randrange(100_000), 200_000)[:64]
            put(store, numbers)
    time.sleep(0.02 + random.random() * 0.2)
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    intact, damaged = store.verify()
    assert damaged == 0, trial
    store.close()
print(intact > 0, store.writable)
put(store, range(100))
print(num_right(store, range(100)))
"""
    assert run_python(code, tmp_path) == "True True\n100\n"


def test_a_writer_that_is_killed_leaves_the_lock_to_others(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path, FINGERPRINT)
    put(store, range(10))
    code = """
with store._environment().transaction(write=True) as transaction:
    transaction.put(b"half", b"done")
    print("writing", flush=True)
    time.sleep(60)
"""
    process = start_python(code, tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    put(store, range(20))
    assert num_right(store, range(20)) == len(store) == 20
    store.close()


def test_two_processes_fill_one_store_at_once(tmp_path: Path) -> None:
    code = "put(store, range(0, 600), step=8); print(num_right(store, range(600)))"
    other = "put(store, range(599, -1, -1), step=8); print(num_right(store, range(600)))"
    processes = [start_python(program, tmp_path) for program in (code, other)]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert outputs == ["600\n", "600\n"]
    store = ActivationStore(tmp_path, FINGERPRINT)
    assert store.verify() == (600, 0)
    store.close()


def test_a_process_follows_when_another_grows_the_map(tmp_path: Path) -> None:
    code = """
environment.INITIAL_MAP_SIZE = 1 << 18
put(store, range(10))
child = os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", '''
from pathlib import Path
import sys
from hf_freeze.activation_cache.store import ActivationStore
from tests.unit.activation_cache.rows import FINGERPRINT, put
put(ActivationStore(Path(sys.argv[1]), FINGERPRINT), range(400))
''', str(root)])
assert child == 0
print(num_right(store, range(400)))
put(store, range(400, 500))
print(num_right(store, range(500)), store.writable)
"""
    assert run_python(code, tmp_path) == "400\n500 True\n"


def test_a_forked_child_is_refused_and_does_no_harm(tmp_path: Path) -> None:
    code = """
put(store, range(10))
child = os.fork()
if child == 0:
    for use in (store, ActivationStore(root, FINGERPRINT)):
        try:
            num_right(use, range(10))
        except CacheError as error:
            print(str(error).replace(str(os.getppid()), "PARENT"))
    other = ActivationStore(root, "of-the-child")
    put(other, range(5))
    print(num_right(other, range(5)), flush=True)
    other.close()
    store.close()
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
put(store, range(20))
print(num_right(store, range(20)), [info.fingerprint for info in housekeeping.clear(root)])
"""
    message = (
        f"activation_cache: a forked process cannot use the store that its parent has open; got "
        f"{str(tmp_path / FINGERPRINT)!r}, opened by process PARENT. Read and write the store in the process that "
        f"opened it, or start the other one with the method 'spawn'."
    )
    assert run_python(code, tmp_path) == f"{message}\n{message}\n5\n20 ['of-the-child']\n"


def test_a_store_that_was_not_open_can_be_used_after_a_fork(tmp_path: Path) -> None:
    code = """
put(store, range(10))
store.close()
child = os.fork()
print(num_right(store, range(10)), flush=True)
if child:
    assert os.waitpid(child, 0)[1] == 0
"""
    assert run_python(code, tmp_path) == "10\n10\n"


def test_a_full_disk_ends_the_writing_only(tmp_path: Path) -> None:
    code = """
put(store, range(50))
resource.setrlimit(resource.RLIMIT_FSIZE, (store.num_bytes + 100_000,) * 2)
put(store, range(50, 500))
kept = num_right(store, range(500))
put(store, range(50, 500))
print(store.writable, 50 <= kept == num_right(store, range(500)) < 500, store.verify()[1], len(store) == kept)
"""
    warning, result = run_python(code, tmp_path).splitlines()
    assert warning.startswith(f"activation_cache: {tmp_path / FINGERPRINT} takes no more rows (")
    assert warning.endswith("). Training goes on without storing more rows.")
    assert result == "False True 0 True"
    store = ActivationStore(tmp_path, FINGERPRINT)
    put(store, range(500))
    assert num_right(store, range(500)) == 500
    store.close()


def test_little_address_space_is_enough(tmp_path: Path) -> None:
    code = """
mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + (5 << 28),) * 2)
put(store, range(20))
store._environment()
try:
    store._environment().grow()
except OSError as error:
    print(error.strerror)
print(num_right(store, range(20)))
"""
    assert run_python(code, tmp_path) == "Cannot allocate memory\n20\n"


def test_no_address_space_is_an_error_and_not_damage(tmp_path: Path) -> None:
    code = """
put(store, range(20))
store.close()
mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + (1 << 28), resource.RLIM_INFINITY))
try:
    store.has([key(0)])
except CacheError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
"""
    folder = str(tmp_path / FINGERPRINT)
    assert run_python(code, tmp_path) == (
        f"activation_cache.dir: cannot open the store of this folder; got {folder!r} ({folder}: Cannot allocate "
        f"memory). Set activation_cache.dir to a folder on a local disk that can be written.\n"
    )
    store = ActivationStore(tmp_path, FINGERPRINT)
    assert num_right(store, range(20)) == 20
    store.close()


def test_a_store_that_another_process_has_open_is_not_removed(tmp_path: Path) -> None:
    process = start_python("put(store, range(3)); print('open', flush=True); time.sleep(60)", tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    assert [info.rows for info in list_stores(tmp_path)] == [3]
    assert prune(tmp_path, max_size=0, expire_after=0.0) == clear(tmp_path) == []
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert [info.fingerprint for info in clear(tmp_path)] == [FINGERPRINT]
    assert list_stores(tmp_path) == []


def test_threads_that_open_fill_and_prune_do_not_wait_for_each_other_in_vain(tmp_path: Path) -> None:
    code = """
import faulthandler
import threading
from hf_freeze.activation_cache.housekeeping import prune

faulthandler.dump_traceback_later(60, exit=True)

def open_and_fill():
    for number in range(300):
        other = ActivationStore(root, f"{number % 2:032x}", max_size=1 << 30)
        put(other, [number])
        other.close()

def measure_all():
    while any(thread.is_alive() for thread in threads):
        prune(root, max_size=1 << 30, expire_after=None)

threads = [threading.Thread(target=open_and_fill) for _ in range(2)]
for thread in threads:
    thread.start()
measure_all()
print("done")
"""
    assert run_python(code, tmp_path) == "done\n"


def test_opening_while_another_process_writes_finds_no_damage(tmp_path: Path) -> None:
    code = """
print("ready", flush=True)
start = 0
while not (root / "stop").exists():
    put(store, range(start, start + 64), step=8)
    start += 64
print(len(store) == start)
"""
    process = start_python(code, tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for _ in range(100):
        store = ActivationStore(tmp_path, FINGERPRINT)
        num_right(store, range(64))
        store.close()
    (tmp_path / "stop").touch()
    assert process.communicate(timeout=120)[0] == "True\n"


def test_readers_that_were_killed_leave_their_places_to_others(tmp_path: Path) -> None:
    code = """
environment._MAX_READERS = 3
put(store, range(10))
program = '''
import lmdb, os, signal, sys
transaction = lmdb.open(sys.argv[1]).begin()
os.kill(os.getpid(), signal.SIGKILL)
'''
for _ in range(3):
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", program, str(store.folder)]) == -signal.SIGKILL
print(num_right(store, range(10)), store.damaged)
"""
    assert run_python(code, tmp_path) == "10 0\n"
