"""Which tests take long: they run in `make test-full` and at night, not in `make test`.

``python -m tests.slow REPORT.xml …`` writes `slow.txt` anew from reports of ``pytest --junitxml``; where a test is in
several, the last one counts. Of every test function one case stays, the quickest, unless it takes very long.
"""

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from xml.etree import ElementTree

LIST = Path(__file__).with_suffix(".txt")
# Seconds, two tests at a time on two cores.
_LONG, _VERY_LONG = 0.5, 3.0
# What no other test shows.
_KEPT = (
    "tests/distributed/test_ranks.py::test_as_one_process[2]",
    "tests/distributed/test_divided.py::test_as_of_whole_weights[2]",
    "tests/distributed/test_command.py::test_a_lost_process_is_named",
    "tests/machine/test_second_device.py",
    "tests/analyses/hessian/test_hessian.py::test_random_networks_against_the_dense_hessian",
)


def names() -> frozenset[str]:
    """Ids of the tests that take long."""
    return frozenset(LIST.read_text().splitlines())


def seconds(reports: Iterable[Path]) -> dict[str, float]:
    """How long each test took."""
    found = {}
    for report in reports:
        for case in ElementTree.parse(report).iter("testcase"):
            path = case.attrib["classname"].replace(".", "/") + ".py"
            found[f"{path}::{case.attrib['name']}"] = float(case.attrib["time"])
    return found


def slow(took: Mapping[str, float]) -> set[str]:
    """Those of them that take long, less one of each function and what is kept."""
    cases = defaultdict(list)
    for name, time in took.items():
        cases[name.partition("[")[0]].append((time, name))
    chosen = set()
    for times in cases.values():
        for index, (time, name) in enumerate(sorted(times)):
            limit = _LONG if index else _VERY_LONG
            if time > limit and not name.startswith(_KEPT):
                chosen.add(name)
    return chosen


def main() -> None:
    """Write the list."""
    took = seconds(map(Path, sys.argv[1:]))
    chosen = slow(took)
    LIST.write_text("".join(f"{name}\n" for name in sorted(chosen)))
    left = sum(time for name, time in took.items() if name not in chosen)
    print(f"{len(chosen)} of {len(took)} tests are slow; the others take {left:.0f} s in all")


if __name__ == "__main__":
    main()
