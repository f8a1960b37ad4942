"""The real servers: they answer, they end, and they leave nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest
import redis
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from deploy.services import process
from deploy.services.process import Child, Command, ServiceFailed, ServiceUnavailable, running
from deploy.services.tansu import Tansu
from deploy.services.valkey import Valkey


def _round_trip(bootstrap_servers: str) -> int:
    topic = f"services-{uuid.uuid4().hex}"
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(10)
    failures: list[object] = []
    producer = Producer({"bootstrap.servers": bootstrap_servers})
    for n in range(10):
        producer.produce(topic, str(n), on_delivery=lambda e, _: failures.append(e) if e else None)
    return producer.flush(10) + len(failures)


def test_the_embedded_broker_takes_messages(embedded_broker: str) -> None:
    assert _round_trip(embedded_broker) == 0


def test_apache_kafka_takes_messages(kafka_broker: str) -> None:
    assert _round_trip(kafka_broker) == 0


def test_the_store_runs_lua(valkey: str) -> None:
    host, port = valkey.split(":")
    client = redis.Redis(host=host, port=int(port))
    assert client.eval("return 6 * 7", 0) == 42


def test_a_stopped_service_frees_its_port(tmp_path: Path) -> None:
    store = Valkey(tmp_path)
    with running(store) as child:
        assert store.ready()
    assert not store.ready()
    assert not process.listening(store.port)
    assert not psutil.pid_exists(child.pid)


def test_services_listen_on_loopback_only(tmp_path: Path) -> None:
    with running(Valkey(tmp_path)) as store, running(Tansu(tmp_path)) as broker:
        for child in (store, broker):
            listeners = [
                c.laddr.ip
                for c in psutil.Process(child.pid).net_connections("tcp")
                if c.status == psutil.CONN_LISTEN
            ]
            assert set(listeners) == {"127.0.0.1"}


def test_a_crash_while_starting_is_reported_with_the_last_log_lines(tmp_path: Path) -> None:
    class Doomed:
        name = "doomed"

        def command(self) -> Command:
            return Command([sys.executable, "-c", "print('no data'); exit(3)"], tmp_path / "d.log")

        def ready(self) -> bool:
            return False

    with pytest.raises(ServiceFailed, match=r"(?s)code 3.*no data"):
        process.start(Doomed())


def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    code = "import signal,time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
    child = Child("ignoring", Command([sys.executable, "-c", code], tmp_path / "child.log"))
    assert process.wait_until(lambda: "ready" in child.tail(), 10)
    assert child.stop(grace_s=0.3) == -signal.SIGKILL


def test_processes_of_a_child_end_with_it(tmp_path: Path) -> None:
    code = "import subprocess,time; p=subprocess.Popen(['sleep','60']); print(p.pid, flush=True); time.sleep(60)"
    child = Child("parent", Command([sys.executable, "-c", code], tmp_path / "p.log"))
    assert process.wait_until(lambda: child.tail().strip().isdigit(), 10)
    grandchild = int(child.tail().strip())
    child.stop()
    assert process.wait_until(lambda: not _runs(grandchild), 5)


def test_children_die_with_a_killed_parent(tmp_path: Path) -> None:
    code = (
        "import sys,time; from pathlib import Path; from deploy.services import process, valkey\n"
        "store = valkey.Valkey(Path(sys.argv[1])); child = process.start(store)\n"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert _runs(pid)
        parent.kill()
    assert process.wait_until(lambda: not _runs(pid), 5)


def test_a_log_tail_is_of_this_run_only(tmp_path: Path) -> None:
    path = tmp_path / "part.log"
    path.write_text("from an earlier run\n")
    child = Child("echo", Command(["echo", "from this run"], path))
    assert process.wait_until(lambda: not child.alive(), 10)
    assert child.tail() == "from this run"


CRASH = """\
Traceback (most recent call last):
  File "old.py", line 1, in run
OSError: of an earlier failure
2026-01-01 INFO tidemill: ready
Traceback (most recent call last):
  File "worker.py", line 3, in run
    fold(batch)
  File "fold.py", line 9, in fold
    raise ValueError("row 7 has no user")
ValueError: row 7 has no user
"""
LIBRARY = "%4|1796053081.969|FAIL|rdkafka#producer-1| [thrd:host]: Connection refused\n" * 50


def test_the_cause_of_a_crash_stands_before_the_client_librarys_messages(tmp_path: Path) -> None:
    found = process.cause_first(CRASH + LIBRARY, 12).splitlines()
    assert found[0] == "ValueError: row 7 has no user"
    assert '    raise ValueError("row 7 has no user")' in found
    assert not any("rdkafka" in line or "OSError" in line for line in found)
    assert process.cause_first(CRASH + LIBRARY, 3).startswith("ValueError: row 7")
    assert "rdkafka" in process.cause_first(LIBRARY, 3)
    assert process.cause_first("killed\n" + LIBRARY, 3) == "killed"
    path = tmp_path / "crash.log"
    script = f"import sys; sys.stdout.write({CRASH + LIBRARY!r})"
    child = Child("crashing", Command([sys.executable, "-c", script], path))
    assert process.wait_until(lambda: not child.alive(), 30)
    assert child.cause(12).startswith("ValueError: row 7")


def test_chosen_ports_are_all_different() -> None:
    ports = [process.free_port() for _ in range(50)]
    assert len(set(ports)) == 50


def test_no_maven_means_unavailable_with_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deploy.services import kafka

    monkeypatch.setenv("TIDEMILL_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ServiceUnavailable, match="apt-get install maven"):
        kafka.jars()
    left = [p for p in (tmp_path / "kafka").iterdir() if p.suffix != ".lock"]
    assert left == []  # no partial download is left


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_waiting_ends_when_time_is_out() -> None:
    started = time.monotonic()
    assert not process.wait_until(lambda: False, 0.2)
    assert time.monotonic() - started >= 0.2
