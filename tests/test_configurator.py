"""configurator.py: what is typed becomes a Config, or fails before anything runs."""

from dataclasses import dataclass

import pytest

from nanochat.common import ConfigError
from nanochat.configurator import cli, parse


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
