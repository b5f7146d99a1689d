"""Every kind of finding is named once, with its source, under the command that finds it."""

import importlib
import importlib.util

from curvcli.analyses.gradients.rules import RULES
from curvcli.analyses.registry import NAMES
from curvcli.analyses.shared import rules as product_rules
from curvcli.analyses.shared.rules import Rule


def registries() -> dict[str, list[Rule]]:
    """The rules of each question that has some beside the gradients' own."""
    found = {"hessian (products)": [r for r in vars(product_rules).values() if isinstance(r, Rule)]}
    for name in NAMES:
        module = f"curvcli.analyses.{name}.findings"
        if importlib.util.find_spec(module) is not None:
            held = vars(importlib.import_module(module)).values()
            found[name] = [rule for rule in held if isinstance(rule, Rule)]
    return found


def test_a_rule_is_named_after_its_command_and_has_a_source() -> None:
    for name, rules in registries().items():
        assert rules, name
        for rule in rules:
            assert rule.id.startswith(f"{name.split()[0]}."), rule
            assert rule.source
            assert rule.severity in ("error", "warning", "note")


def test_no_two_rules_have_one_name() -> None:
    ids = [rule.id for rules in registries().values() for rule in rules]
    ids += [f"gradients.{name}" for name in RULES]
    assert len(ids) == len(set(ids))
