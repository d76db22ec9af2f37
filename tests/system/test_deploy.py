"""The image and the compose file, as far as they can be tried without Docker.

The image's environment is made as deploy/Dockerfile makes it, from the packages of this one; the processes run in it with the
commands and the environment that docker-compose.yml states, on private servers.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import SplitResult, urlsplit
from urllib.request import urlopen
from zipfile import ZipFile

import pytest
from ruamel.yaml import YAML

from gateway import drain
from rollcall import leash
from rollcall.launcher import POLL_SECONDS, free_port, leashed
from shared.settings import Settings
from shared.worker import STOP_SECONDS as STOP_SECONDS_OF_A_WORKER

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "deploy" / "Dockerfile"

PROCESSES = ("gateway", "session-service", "attendance-service")
READY_SECONDS = 30.0
STOP_SECONDS = 10.0
MIGRATE_SECONDS = 30.0

VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::(?P<kind>[?-])(?P<rest>[^}]*))?\}")
GIVEN = {"ROLLCALL_JWT_SECRET": "j" * 32, "POSTGRES_PASSWORD": "postgres-password", "RABBITMQ_PASSWORD": "rabbitmq-password"}


# What the two files say


def interpolated(value: Any, given: Mapping[str, str]) -> Any:
    """Fill the variables in as Compose does; KeyError for one that must be given and is not."""
    match value:
        case str():
            return VARIABLE.sub(lambda v: given.get(v["name"]) or (v["rest"] if v["kind"] == "-" else given[v["name"]]), value)
        case list():
            return [interpolated(item, given) for item in value]
        case dict():
            return {key: interpolated(item, given) for key, item in value.items()}
    return value


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    """The services of docker-compose.yml, with the secrets of GIVEN."""
    services: dict[str, dict[str, Any]] = interpolated(YAML(typ="safe").load(COMPOSE), GIVEN)["services"]
    return services


def stages() -> list[list[tuple[str, str]]]:
    """The stages of the Dockerfile, each a list of instructions with what they are given."""
    text = re.sub(r"(?m)^\s*#.*\n", "", DOCKERFILE.read_text()).replace("\\\n", " ")
    stages: list[list[tuple[str, str]]] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            stages.append([])
        stages[-1].append((instruction, " ".join(rest.split())))
    return stages


def one(stage: list[tuple[str, str]], instruction: str) -> str:
    """What the only instruction of its kind in this stage is given."""
    [rest] = [rest for name, rest in stage if name == instruction]
    return rest


# What the image would hold


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the Dockerfile's first stage copies."""
    folder = tmp_path_factory.mktemp("source")
    for instruction, rest in stages()[0]:
        if instruction == "COPY":
            path, _ = rest.split()
            if (ROOT / path).is_dir():
                shutil.copytree(ROOT / path, folder / path, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / path, folder / path)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project, built from that and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    [wheel] = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image's environment: what is locked, less what the Dockerfile uninstalls, and the wheel. Returns its folder `bin`."""
    environment = tmp_path_factory.mktemp("image") / "rollcall"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    [packages] = environment.glob("lib/python*/site-packages")
    for name in locked() - uninstalled():
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue  # the lock has it for another platform
        for entry in {path.parts[0] for path in package.files or ()} - {"..", "__pycache__"}:
            (packages / entry).symlink_to(str(package.locate_file(entry)))
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)
    return environment / "bin"


def locked() -> set[str]:
    return set(re.findall(r"(?m)^([a-z0-9-]+)==", (ROOT / "requirements.lock").read_text()))


def uninstalled() -> set[str]:
    [names] = [rest.partition("uninstall --yes ")[2] for _, rest in stages()[0] if "uninstall --yes " in rest]
    return set(names.split())


# Running it


class Process:
    """One process of the compose file, with its own environment and nothing of ours; it dies with us."""

    def __init__(self, installed: Path, command: list[str], environment: Mapping[str, str], folder: Path, name: str) -> None:
        self.log = folder / f"{name}.log"
        self.health_port = environment.get("ROLLCALL_HEALTH_PORT")
        path = os.pathsep.join([str(installed), os.defpath])
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                leashed(command, leash.SAME_USER, signal.SIGKILL),
                env={**environment, "PATH": path},
                cwd=folder,  # not the project's, where Python would find the packages without our having installed them
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def wait_until_ready(self, seconds: float = READY_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not self._is_ready():
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(POLL_SECONDS)

    def _is_ready(self) -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{self.health_port}/health/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False

    def wait(self, seconds: float) -> int:
        return self._process.wait(seconds)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def servers(database: str, redis_url: str, amqp_url: str) -> dict[str, str]:
    """Where the servers of the compose file are, by the names it gives them."""
    return {"postgres": database, "redis": redis_url, "rabbitmq": amqp_url}


def placed(environment: Mapping[str, str], servers: Mapping[str, str]) -> dict[str, str]:
    """The environment, with the private servers for the file's own, and free ports."""
    here = {name: servers.get(str(urlsplit(value).hostname), value) for name, value in environment.items()}
    return here | {name: str(free_port()) for name in here if name.endswith("_PORT")}


@contextmanager
def running(
    installed: Path, services: dict[str, dict[str, Any]], servers: dict[str, str], folder: Path
) -> Iterator[list[Process]]:
    """The three processes, after the one that migrates."""
    processes: list[Process] = []
    try:
        for names in (("migrate",), PROCESSES):
            for name in names:
                service = services[name]
                environment = placed(service["environment"], servers)
                processes.append(Process(installed, service["command"], environment, folder, name))
            if names == ("migrate",):
                assert processes[0].wait(MIGRATE_SECONDS) == 0, processes[0].log.read_text()
        yield processes[1:]
    finally:
        for process in processes:
            process.kill()


def test_every_process_of_the_compose_file_migrates_serves_and_stops(
    installed: Path, services: dict[str, dict[str, Any]], servers: dict[str, str], tmp_path: Path
) -> None:
    """With the file's commands and environment and with the image's packages, and with nothing else."""
    with running(installed, services, servers, tmp_path) as processes:
        for process in processes:
            process.wait_until_ready()

        for process in processes:
            process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for process in processes:
            status = process.wait(max(0.1, deadline - time.monotonic()))
            assert status == 0, process.log.read_text()


def test_without_the_private_servers_the_command_line_still_mints_tokens(installed: Path, tmp_path: Path) -> None:
    command = [str(installed / "rollcall"), "token", "--role", "teacher", "--sub", "t1"]
    environment = {"ROLLCALL_JWT_SECRET": GIVEN["ROLLCALL_JWT_SECRET"]}

    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)

    assert done.stdout.count(".") == 2


def test_the_wheel_holds_every_file_of_every_package(source: Path, wheel: Path) -> None:
    """The migrations too, which are no Python packages, with their templates."""
    project = tomllib.loads((source / "pyproject.toml").read_text())
    packages = [source / path for path in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]
    written = {
        path.relative_to(package.parent).as_posix() for package in packages for path in package.rglob("*") if path.is_file()
    }
    assert {f"{name}/migrations/script.py.mako" for name in ("session_service", "attendance_service")} <= written

    assert written <= set(ZipFile(wheel).namelist())


# The compose file


def test_nothing_but_nginx_is_reached_from_outside(services: dict[str, dict[str, Any]]) -> None:
    assert {name for name, service in services.items() if "ports" in service} == {"nginx"}
    assert not any("network_mode" in service for service in services.values())


def test_every_process_may_be_scaled(services: dict[str, dict[str, Any]]) -> None:
    assert not any("container_name" in service for service in services.values())
    assert not any({"ports", "hostname"} & services[name].keys() for name in PROCESSES)


def test_one_image_serves_all_and_one_service_builds_it(services: dict[str, dict[str, Any]]) -> None:
    """Two services that build one tag collide the first time."""
    assert len({services[name]["image"] for name in (*PROCESSES, "migrate")}) == 1
    assert [name for name, service in services.items() if "build" in service] == ["migrate"]


class Recorder(dict[str, str]):
    """An environment that remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return default


def test_every_setting_in_use_is_one_that_the_processes_know(services: dict[str, dict[str, Any]]) -> None:
    environment = Recorder()
    Settings.from_env(environment)

    used = {name for process in (*PROCESSES, "migrate") for name in services[process]["environment"]}

    assert used <= environment.asked


def test_the_urls_lead_to_the_servers_as_they_are_set_up(services: dict[str, dict[str, Any]]) -> None:
    """The private servers trust everyone; the real ones ask for this user, this password and this database."""

    def urls(setting: str) -> list[SplitResult]:
        found = [service.get("environment", {}).get(setting) for service in services.values()]
        return [urlsplit(url) for url in found if url]

    postgres, rabbitmq = services["postgres"]["environment"], services["rabbitmq"]["environment"]
    wanted = {
        "ROLLCALL_DATABASE_URL": ("postgres", 5432, postgres["POSTGRES_USER"], postgres["POSTGRES_PASSWORD"]),
        "ROLLCALL_AMQP_URL": ("rabbitmq", 5672, rabbitmq["RABBITMQ_DEFAULT_USER"], rabbitmq["RABBITMQ_DEFAULT_PASS"]),
        "ROLLCALL_REDIS_URL": ("redis", 6379, None, None),
    }
    for setting, server in wanted.items():
        assert {(url.hostname, url.port, url.username, url.password) for url in urls(setting)} == {server}
    assert {url.path for url in urls("ROLLCALL_DATABASE_URL")} == {f"/{postgres['POSTGRES_DB']}"}
    assert {url.path for url in urls("ROLLCALL_AMQP_URL")} == {"/"}  # the default virtual host, as aio-pika reads it


def test_each_process_is_asked_for_its_health_where_it_answers(services: dict[str, dict[str, Any]]) -> None:
    for name in PROCESSES:
        port = services[name]["environment"]["ROLLCALL_HEALTH_PORT"]
        assert f"127.0.0.1:{port}/health/ready" in services[name]["healthcheck"]["test"][-1]


def test_every_process_has_the_time_it_takes_to_go(services: dict[str, dict[str, Any]]) -> None:
    """A gateway gives its clients up after so long, and what is then unfinished a few seconds more; services, their batch."""
    grace = {name: float(services[name]["stop_grace_period"].removesuffix("s")) for name in PROCESSES}
    assert grace["gateway"] >= drain.PATIENCE_SECONDS + 10 + 5
    assert min(grace["session-service"], grace["attendance-service"]) >= STOP_SECONDS_OF_A_WORKER + 10


def test_no_secret_has_a_default_and_the_example_names_every_variable() -> None:
    variables = list(VARIABLE.finditer(COMPOSE.read_text()))
    example = (ROOT / ".env.example").read_text()

    # The key for tokens may be published elsewhere; the gateway says when there is neither.
    demanded = set(GIVEN) - {"ROLLCALL_JWT_SECRET"}
    assert {v["name"] for v in variables if v["kind"] == "?"} == demanded
    assert all(v["kind"] == "?" for v in variables if v["name"] in demanded)
    assert "ROLLCALL_JWT_SECRET: ${ROLLCALL_JWT_SECRET:-}" in COMPOSE.read_text()
    assert {v["name"] for v in variables} == set(re.findall(r"(?m)^#?(\w+)=", example))
    assert not re.search(rf"(?m)^({'|'.join(GIVEN)})=.", example)


# The Dockerfile


def test_the_image_runs_as_a_numbered_user_who_is_not_root() -> None:
    user, _, group = one(stages()[-1], "USER").partition(":")

    assert int(user) > 0
    assert int(group) > 0


def test_the_image_starts_no_shell() -> None:
    final = stages()[-1]

    assert "ENTRYPOINT" not in {instruction for instruction, _ in final}
    assert json.loads(one(final, "CMD"))[0] == "rollcall"


def test_the_dockerfile_names_no_registry() -> None:
    assert "://" not in DOCKERFILE.read_text()
    assert all("/" not in one(stage, "FROM") for stage in stages())


def test_every_process_may_run_on_a_read_only_root(services: dict[str, dict[str, Any]]) -> None:
    """What the processes are promised in the compose file is kept by the image: nothing is compiled when it runs."""
    assert all(services[name]["read_only"] for name in (*PROCESSES, "migrate"))
    assert "PYTHONDONTWRITEBYTECODE=1" in one(stages()[-1], "ENV")
