"""A run's options, each declared once: the flag, the variable of make, the merge and the spec follow from its field."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

from infra.__main__ import COMMANDS, parse
from infra.config import Installation
from infra.operate.command_line import CommandLine
from infra.operate.planning import options, plan
from infra.operate.planning.options import Option, Request, go_on, options_of, spec_values
from infra.operate.planning.prices import Prices
from infra.run.spec import Spec
from tests import ROOT
from trainer.contract import UserError

OPTIONS = dict(options_of(Request))
GIVEN: dict[str, tuple[str, Any]] = {  # field: the words of an option, and what they ask for
    "recipe": ("finetune", "finetune"),
    "data": ("me/my-images", "me/my-images"),
    "arguments": ("--epochs 4 --name 'two words'", ("--epochs", "4", "--name", "two words")),
    "run_id": ("my-run", "my-run"),
    "hours": ("20", 20.0),
    "budget_usd": ("9.5", 9.5),
    "market": ("on-demand", "on-demand"),
    "types": ("g6.xlarge,g5.xlarge", ("g6.xlarge", "g5.xlarge")),
    "on_demand_after_minutes": ("15", 15.0),
    "keep_minutes": ("2h", 120.0),
    "nodes": ("2", 2),
    "zone": ("us-east-1b", "us-east-1b"),
    "anyway": ("1", True),
}
SPEC = Spec(run_id="mine", recipe="digits", arguments=("digits",), budget_usd=1, hours=1, created=0, deadline=0)


def flag(one: Option, text: str) -> list[str]:
    return [f"--{one.name}"] if one.parse is bool else [f"--{one.name}={text}"]


def asked(*arguments: str, environ: dict[str, str] | None = None, command: str = "launch") -> Request:
    kind = "prepare" if command == "prepare" else "train"
    return options.request_of(parse(["--make", command, *arguments], environ or {}), kind)


def test_every_field_of_a_request_is_an_option_with_help_and_a_field_of_the_spec() -> None:
    assert {one.name for one in fields(Request)} - {"kind"} == OPTIONS.keys() == GIVEN.keys()
    in_spec = {one.name for one in fields(Spec)}
    for name, one in OPTIONS.items():
        assert one.help, name
        assert one.spec in in_spec or name in ("run_id", "anyway")
    assert {name for name, one in OPTIONS.items() if one.stays} == {"recipe", "data", "arguments"}


@pytest.mark.parametrize("name", GIVEN)
def test_a_flag_and_its_variable_ask_for_the_same(name: str) -> None:
    text, value = GIVEN[name]
    by_flag, by_variable = asked(*flag(OPTIONS[name], text)), asked(environ={OPTIONS[name].variable: text})
    assert by_flag == by_variable == Request(**{name: value})


def test_all_variables_together_are_all_flags_together() -> None:
    environ = {OPTIONS[name].variable: text for name, (text, _) in GIVEN.items()}
    words = [word for name, (text, _) in GIVEN.items() for word in flag(OPTIONS[name], text)]
    assert asked(*words) == asked(environ=environ) == Request(**{name: value for name, (_, value) in GIVEN.items()})


def test_a_preparation_has_the_limits_of_a_training_and_no_recipe() -> None:
    environ = {"RECIPE": "finetune", "NODES": "2", "HOURS": "3", "DATA": "me/my-images", "TYPES": "c7a.2xlarge"}
    assert asked(environ=environ, command="prepare") == Request(
        kind="prepare", hours=3.0, data="me/my-images", types=("c7a.2xlarge",)
    )


def test_a_flag_is_stronger_than_a_variable_and_an_empty_variable_is_none() -> None:
    assert asked("--hours", "3", environ={"HOURS": "4", "BUDGET": "", "ANYWAY": ""}) == Request(hours=3.0)


def test_without_make_a_variable_of_the_shell_means_nothing() -> None:
    environ = {"RUN": "x", "ARGS": "--verbose", "TYPES": "a", "HOURS": "many"}
    assert options.request_of(parse(["launch"], environ)) == Request()


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"HOURS": "many"}, "argument --hours: invalid float value: 'many'"),
        ({"KEEP": "30"}, "argument --keep: '30' is no time: give minutes or hours, 30m or 2h"),
        ({"ARGS": "--name 'open"}, '"--name \'open" is not a list of words (No closing quotation): close the quote'),
    ],
)
def test_a_value_that_cannot_be_read_is_a_usage_error(
    environ: dict[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        asked(environ=environ)
    assert said in capsys.readouterr().err


@dataclass(frozen=True, kw_only=True)
class LaterSpec(Spec):
    volume_gib: int = 0


@dataclass(frozen=True, kw_only=True)
class LaterRequest(Request):
    volume_gib: int = options.option("volume-gib", "a larger disk", default=0, parse=int, spec="volume_gib")


def test_the_next_option_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(options, "Request", LaterRequest)
    by_flag, by_variable = asked("--volume-gib", "400"), asked(environ={"VOLUME_GIB": "400"})
    assert by_flag == by_variable == LaterRequest(volume_gib=400)
    assert asked(environ={"VOLUME_GIB": "400"}, command="prepare") == LaterRequest(kind="prepare", volume_gib=400)
    with pytest.raises(SystemExit, match="0"):
        parse(["launch", "--help"], {})
    assert "a larger disk (make: VOLUME_GIB=)" in " ".join(capsys.readouterr().out.split())
    assert spec_values(by_flag)["volume_gib"] == 400
    spec = LaterSpec(**{**vars(SPEC), "volume_gib": 200})
    assert [getattr(go_on(one, spec), "volume_gib", 0) for one in (LaterRequest(), by_flag)] == [200, 400]
    assert options.changes_limits(by_flag)


def test_a_run_that_goes_on_keeps_every_option_but_new_limits() -> None:
    values = {name: value for name, (_, value) in GIVEN.items() if OPTIONS[name].spec}
    spec = Spec(**vars(SPEC) | {OPTIONS[name].spec: value for name, value in values.items()}
                | {"arguments": ("finetune", *GIVEN["arguments"][1])})  # fmt: skip
    assert go_on(Request(), spec) == Request(**values)
    for name, one in OPTIONS.items():
        if one.spec and not one.stays:
            other = type(values[name])(("a",) if name == "types" else 7 if one.parse is not str else "spot")
            assert getattr(go_on(Request(**{name: other}), spec), name) == other
    with pytest.raises(UserError, match=r"DATA='you/other' is not what RUN=mine was started with \('me/my-images'\)"):
        go_on(Request(data="you/other"), spec)
    with pytest.raises(UserError, match=r"ARGS=.* is not what RUN=mine was started with"):
        go_on(Request(arguments=("--epochs", "3")), spec)
    asked, commit = ("--checkpoint.accept-changes", "--optim.peak-lr", "1"), f"{values['data']}@{'0' * 40}"
    assert go_on(Request(arguments=asked, data=commit), spec) == Request(
        **values | {"arguments": asked, "data": commit}
    )


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment for the operator whose Python only says how it was called, with the words of ARGS=."""
    folder = tmp_path_factory.mktemp("infra")
    (folder / "bin").mkdir()
    python = folder / "bin" / "python"
    python.write_text(
        f"#!{sys.executable} -IS\nimport json, os, sys\n"
        "if sys.argv[2] == 'trainer.words': os.execv(sys.executable, [sys.executable, *sys.argv[1:]])\n"
        "print(json.dumps([sys.argv[1:], dict(os.environ)]))\n"
    )
    python.chmod(0o755)
    (folder / ".infra").touch()
    return folder


def made(stand_in: Path, *arguments: str, **environ: str) -> dict[str, object]:
    """What `make …` asks of the operator's command line."""
    given = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    for variable in ("RUN", "ARGS", "TYPES", "FAST", "STRICT"):  # of the `make test` that this may run in
        given.pop(variable, None)
    ended = subprocess.run(
        ["make", *arguments, f"INFRA={stand_in}"], cwd=ROOT, env=given | environ, capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    (_, module, *words), environment = json.loads(ended.stdout.splitlines()[-1])
    assert module == "infra"
    return vars(parse(words, environment))


@pytest.mark.parametrize("target", ["cost", "preflight"])
def test_json_may_stand_among_the_options_of_the_recipe(stand_in: Path, target: str) -> None:
    given = made(stand_in, target, "ARGS=--epochs 4 --json")
    assert options.request_and_json(argparse.Namespace(**given)) == (Request(arguments=("--epochs", "4")), True)
    given = made(stand_in, target, "ARGS=--epochs 4")
    assert options.request_and_json(argparse.Namespace(**given)) == (Request(arguments=("--epochs", "4")), False)


@pytest.mark.parametrize("target", ["launch", "preflight", "cost", "prepare"])
def test_no_default_of_the_local_targets_reaches_a_run_on_aws(stand_in: Path, target: str) -> None:
    given = made(stand_in, target, "ON=aws")
    kind = "prepare" if target == "prepare" else "train"
    for name, one in options_of(Request, kind):
        assert given[name] == one.default, name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("--epochs 4", ("--epochs", "4")),
        ("--name 'two words' --note \"it's\"", ("--name", "two words", "--note", "it's")),
        ("--name '$HOME `id` \\ * ;'", ("--name", "$HOME `id` \\ * ;")),
    ],
)
def test_args_arrive_through_make_as_they_were_written(stand_in: Path, text: str, words: tuple[str, ...]) -> None:
    assert made(stand_in, "launch", f"ARGS={text}")["arguments"] == words
    assert made(stand_in, "launch", ARGS=text)["arguments"] == words


def test_every_option_arrives_through_make(stand_in: Path) -> None:
    variables = [f"{OPTIONS[name].variable}={text}" for name, (text, _) in GIVEN.items()]
    given = made(stand_in, "launch", *variables)
    for name, (_, value) in GIVEN.items():
        assert given[name] == value, name


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["status", "RUN=mine"], "run_id", "mine"),
        (["status", "WATCH=1"], "watch", True),
        (["logs", "SINCE=2h"], "since", "2h"),
        (["logs", "NODE=i-0a1b"], "node", "i-0a1b"),
        (["logs", "ARGS=--no-follow"], "follow", False),
        (["pull"], "to", Path("out")),
        (["pull", "STORE=/a folder"], "to", Path("/a folder")),
        (["pull", "CHECKPOINTS=1"], "checkpoints", True),
        (["destroy", "PURGE=1"], "purge", True),
        (["destroy", "YES=1"], "yes", True),
        (["prepare", "ON=aws", "AGAIN=1"], "again", True),
        (["shell", "NODE=i-1"], "node", "i-1"),
        (["stop", "ARGS=--no-wait"], "wait", False),
        (["status", "ARGS=--json"], "json", True),
        (["runs", "ARGS=--json"], "json", True),
        (["cost", "JSON=1"], "json", True),
    ],
)
def test_the_variables_of_a_command_arrive_through_make(
    stand_in: Path, words: list[str], name: str, value: object
) -> None:
    assert made(stand_in, *words)[name] == value


def test_a_deploy_without_a_launch_is_asked_for_by_a_variable() -> None:
    assert parse(["--make", "deploy"], {}).launches
    assert not parse(["--make", "deploy"], {"NO_LAUNCH": "1"}).launches


def test_no_variable_means_two_things_in_one_command() -> None:
    from importlib import import_module

    for command in COMMANDS:
        parser = CommandLine()
        import_module(f"infra.operate.commands.{command}").configure(parser)
        dests = [action.dest for action in parser.variables.values()]
        assert len(dests) == len(set(dests)), command


def test_a_plan_writes_every_option_into_the_spec() -> None:
    request = Request(recipe="digits", on_demand_after_minutes=15.0, types=("g6.xlarge",))
    prices = Prices({"g6.xlarge": 0.8}, {}, "a test")
    spec = plan.plan_run(request, Installation(), prices, None, None, 0.0).spec
    assert (spec.on_demand_after_minutes, spec.types, spec.nodes) == (15.0, ("g6.xlarge",), 1)
    assert spec.arguments == ("digits",)


def test_what_deletes_without_a_question_counts_only_where_it_was_typed(stand_in: Path) -> None:
    exported = {"PURGE": "1", "YES": "1", "ANYWAY": "1", "ARGS": "--purge --yes"}
    given = made(stand_in, "destroy", **exported)
    assert (given["purge"], given["yes"]) == (False, False)
    assert not made(stand_in, "launch", ANYWAY="1")["anyway"]
    typed = made(stand_in, "destroy", "PURGE=1", "ARGS=--yes")
    assert (typed["purge"], typed["yes"]) == (True, True)


@pytest.mark.parametrize("words", [["runs"], ["--make", "runs"]])
def test_only_the_command_that_was_asked_for_is_imported(words: list[str]) -> None:
    """The others and what they need take time: `make runs` has two seconds for 200 runs."""
    program = "import sys\nfrom infra.__main__ import parse\nparse(sys.argv[1:], {})\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    begin = "infra.operate.commands."
    assert [name for name in done.stdout.split() if name.startswith(begin)] == [f"{begin}runs"]


def test_a_wrong_command_is_told_all_right_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["run", "runs"], {})
    told = capsys.readouterr().err
    assert all(name in told for name in COMMANDS)
