"""Help texts: every example works as it stands, -h is short, --help is whole, and colours are for terminals."""

import re
import shlex

import pytest

from curvcli.analyses.registry import GROUPS, NAMES, get
from curvcli.cli.options import signature
from curvcli.cli.usage import BEGIN, SHARED, USAGE
from tests.oracles.program import in_terminal, invoke


def test_curvcli_alone_shows_three_commands_to_begin_with() -> None:
    shown = invoke()
    assert shown.exit_code == 0
    assert all(line in shown.stdout and purpose in shown.stdout for line, purpose in BEGIN)
    assert len(shown.stdout.splitlines()) < 12


def test_commands_stand_in_their_groups() -> None:
    """Each in exactly one, in the order of the registry."""
    text = invoke("--help").stdout
    assert re.findall(r"^(\w[\w ]*):$", text, re.MULTILINE)[1:-1] == list(GROUPS)
    assert re.findall(r"^  ([a-z]+) {2,}\S", text, re.MULTILINE) == [*NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_examples_come_first_and_are_real(name: str) -> None:
    """Every flag of an example exists, and every option that -h shows."""
    question = get(name)
    options = signature(question).parameters
    # A list takes one entry at a time: rules, --rule.
    names = [o.replace("_", "-") for o in options]
    flags = {"-o", *(f"--{n}" for n in names), *(f"--{n.removesuffix('s')}" for n in names)}
    for line, _ in USAGE[name].examples:
        program, command, *words = shlex.split(line)
        assert (program, command) == ("curvcli", name)
        assert {w for w in words if w.startswith("-")} <= flags
    assert set(USAGE[name].options) <= set(options)
    whole = invoke(name, "--help").stdout
    assert whole.index("Examples") < whole.index("Options" if question.fields() else "options")


@pytest.mark.parametrize("name", NAMES)
def test_the_short_help_has_about_ten_options(name: str) -> None:
    short, whole = invoke(name, "-h"), invoke(name, "--help")
    assert short.exit_code == 0
    shown = re.findall(r"^  (?:-\w, )?(--[a-z-]+)", short.stdout, re.MULTILINE)
    assert len(shown) == len(set(shown)) <= len(SHARED) + 5
    assert f"{name} --help" in short.stdout
    assert len(whole.stdout.splitlines()) > len(short.stdout.splitlines()) or name == "info"


def test_summaries_fit_one_line_and_say_it_in_words() -> None:
    """No jargon that only those know who have written such a program."""
    for name in NAMES:
        summary = get(name).summary
        assert len(summary) <= 88
        assert not re.search(r"Lanczos|Ritz|quadrature|residual|reach|mass|_max", summary)


def test_help_has_colours_on_a_terminal_only() -> None:
    assert "\x1b[1mExamples" in in_terminal("hessian", "-h")[1]
    assert "\x1b" not in in_terminal("hessian", "-h", NO_COLOR="1")[1]
    assert "\x1b" not in invoke("hessian", "--help").stdout
