"""configurator.py: what is typed becomes a Config, or fails before anything runs."""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from nanochat.common import ConfigError
from nanochat.configurator import cli, parse
from nanochat.files import base_dir


@dataclass(frozen=True)
class Config:
    """A small command line."""

    device_batch_size: int = 8
    """Rows at a time."""
    learning_rate: float = 0.02
    """Step size."""
    data: str = "packaged"
    """Where text comes from."""


@pytest.mark.parametrize(
    "args",
    [
        ["--device-batch-size=16"],
        ["--device_batch_size=16"],
        ["--device_batch_size", "16"],
        ["--", "--device_batch_size=16"],
    ],
)
def test_every_spelling_sets_the_same_field(args):
    assert parse(Config, args) == Config(device_batch_size=16)


def test_no_flags_give_the_defaults():
    assert parse(Config, []) == Config(8, 0.02, "packaged")


@pytest.mark.parametrize(
    ("args", "named"),
    [(["--device-batch-sise=16"], "device-batch-sise"), (["--device-batch-size=many"], "many"),
     (["stray"], "stray")],
)  # fmt: skip
def test_bad_flags_fail_and_are_named(args, named, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(Config, args)
    assert caught.value.code == 2
    assert named in "".join(capsys.readouterr())


def test_help_shows_field_docstrings(capsys):
    with pytest.raises(SystemExit) as caught:
        parse(Config, ["--help"])
    assert caught.value.code == 0
    assert "Where text comes from." in capsys.readouterr().out


def test_cli_hands_main_the_parsed_config(monkeypatch):
    monkeypatch.setattr("sys.argv", ["script", "--learning-rate", "1e-3"])
    seen = []
    cli(seen.append, Config)
    assert seen == [Config(learning_rate=1e-3)]


def test_cli_shows_our_errors_without_a_traceback(monkeypatch, capsys):
    def main(config):
        raise ConfigError("depth 0: a model has at least 1 layer")

    monkeypatch.setattr("sys.argv", ["script"])
    with pytest.raises(SystemExit) as caught:
        cli(main, Config)
    error = capsys.readouterr().err
    assert caught.value.code == 1
    assert "ConfigError: depth 0: a model has at least 1 layer" in error
    assert "Traceback" not in error


def test_cli_lets_bugs_through(monkeypatch):
    def main(config):
        raise KeyError("a bug")

    monkeypatch.setattr("sys.argv", ["script"])
    with pytest.raises(KeyError):
        cli(main, Config)


# The programs below print nothing that PyTorch makes, and importing it takes seconds.
WITHOUT_TORCH = """
import sys, types
class Module(types.ModuleType):
    def __getattr__(self, name):
        return object
for name in ("torch", "torch.distributed", "torch.distributed.rendezvous", "torch.nn.attention"):
    sys.modules[name] = Module(name)
sys.modules["torch"].distributed = sys.modules["torch.distributed"]
sys.modules["torch.distributed"].is_initialized = lambda: False
"""

SCRIPT = """
import os, signal, sys, tempfile, time
from dataclasses import dataclass
from nanochat.configurator import cli

@dataclass(frozen=True)
class Config:
    folder: str

def main(config):
    with tempfile.TemporaryDirectory(dir=config.folder):
        ready, tell = os.pipe()
        child = os.fork()  # a helper, which a signal ends as it ends any other program
        if child == 0:
            os.write(tell, b"!")
            while True:  # not signal.pause: Python's handler may come just before it
                time.sleep(0.01)
        os.read(ready, 1)
        os.kill(child, signal.SIGTERM)
        print(os.waitpid(child, 0)[1], flush=True)
        time.sleep(60)

signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest may run where it is ignored
for _ in range(2):
    try:
        cli(main, Config)
    except SystemExit as ended:
        print(ended.code, flush=True)
        os.read(0, 1)  # until the test has looked
"""


@pytest.mark.slow
def test_a_script_that_is_stopped_says_so_and_clears_up(tmp_path):
    root = Path(__file__).resolve().parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", WITHOUT_TORCH + SCRIPT, f"--folder={tmp_path}"],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            assert process.stdout.readline() == f"{signal.SIGTERM.value}\n"
            assert len(list(tmp_path.iterdir())) == 1
            process.send_signal(number)
            assert process.stdout.readline() == f"{code}\n"
            assert not list(tmp_path.iterdir())
            process.stdin.write("\n")
            process.stdin.flush()
        errors = process.communicate(timeout=30)[1]
    assert process.returncode == 0 and errors.split() == ["interrupted", "terminated"]


def test_another_handler_of_sigterm_stays(monkeypatch):
    """As that of the training loop, or of a server; and the default is back after a script."""
    monkeypatch.setattr("sys.argv", ["script"])
    seen = []
    before = signal.signal(signal.SIGTERM, handler := lambda *_: None)
    try:
        cli(lambda config: seen.append(signal.getsignal(signal.SIGTERM)), Config)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        cli(lambda config: seen.append(signal.getsignal(signal.SIGTERM)), Config)
        monkeypatch.setenv("WORLD_SIZE", "2")
        cli(lambda config: seen.append(signal.getsignal(signal.SIGTERM)), Config)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen[0] is handler and callable(seen[1]) and seen[2] is signal.SIG_DFL


# ---------------------------------------------------------------- surroundings

PRINTS = """
import sys
from dataclasses import dataclass
from pathlib import Path
from rich.console import Console
from nanochat.common import print0
from nanochat.configurator import cli
@dataclass(frozen=True)
class Config:
    lines: int = 1
def main(config):
    for _ in range(config.lines):
        print0("CORE: 0.1 ± 0.01, 東京")
    Console().print("[bold]± rich[/bold]")
    print("é", file=sys.stderr)
    from nanochat.files import base_dir
    import getpass
    (base_dir() / "done").write_text(getpass.getuser())
cli(main, Config)
"""


def surrounded(tmp_path, *, shell="{}", args="", **environment):
    """Runs PRINTS in such an environment alone; the process, when it has ended."""
    program = tmp_path / "program.py"
    program.write_text(WITHOUT_TORCH + PRINTS, encoding="utf-8")
    command = shell.format(f"{sys.executable} {program} {args}")
    environment |= {"PYTHONPATH": str(Path(__file__).resolve().parents[1]), "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        command, shell=True, cwd=tmp_path, env=environment, capture_output=True,
        executable="/bin/bash", timeout=120,
    )  # fmt: skip


ASCII = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"PYTHONIOENCODING": "ascii"}, b"\\xb1 0.01, \\u6771\\u4eac\n"),
        ({"PYTHONIOENCODING": "latin-1"}, b"\xb1 0.01, \\u6771\\u4eac\n"),
        (ASCII, b"\\xb1 0.01, \\u6771\\u4eac\n"),
        ({"LC_ALL": "en_US"}, "± 0.01, 東京\n".encode()),
        ({"COLUMNS": "0", "LINES": "0", "TERM": "none"}, "± 0.01, 東京\n".encode()),
    ],
)
@pytest.mark.slow
def test_printing_does_not_depend_on_the_locale(tmp_path, environment, expected):
    ran = surrounded(tmp_path, HOME=str(tmp_path), **environment)
    assert (ran.returncode, expected in ran.stdout) == (0, True), ran.stderr
    assert (tmp_path / ".cache" / "nanochat" / "done").exists()


@pytest.mark.parametrize("shell", ["{} | head -1", "{} > /dev/full", "{} >&- 2>&-", "{} | true"])
@pytest.mark.slow
def test_a_run_ends_well_whoever_reads_what_it_prints(tmp_path, shell):
    ran = surrounded(
        tmp_path, shell=f"set -o pipefail; {shell}", args="--lines=5000", HOME=str(tmp_path)
    )
    assert (ran.returncode, ran.stderr.decode()) in ((0, "é\n"), (0, ""))
    assert (tmp_path / ".cache" / "nanochat" / "done").exists()


@pytest.mark.parametrize("home", [{}, {"HOME": "/proc"}, {"HOME": "/no/such/folder"}])
@pytest.mark.slow
def test_a_user_without_a_name_or_a_home_works_in_the_current_folder(tmp_path, home):
    become = "unshare --user --map-user=54321"
    if shutil.which("unshare") is None or subprocess.run([*become.split(), "true"]).returncode:
        pytest.skip("needs user namespaces")
    ran = surrounded(tmp_path, shell=become + " {}", **home)
    assert ran.returncode == 0 and f"{tmp_path} takes its place" in ran.stderr.decode()
    assert (tmp_path / ".cache/nanochat/done").read_text() == "user54321"


def test_without_any_folder_to_keep_files_in_the_variable_is_named(monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", "/dev/null/here")
    with pytest.raises(ConfigError, match="NANOCHAT_BASE_DIR"):
        base_dir()
