"""The laws hold for every right binding of the collection, and find every wrong one.

A part of the examples that `judge_laws.py` draws; ``HYPOTHESIS_PROFILE=thorough`` draws more.
"""

import os
import zlib

import pytest
from amount import every
from right_bindings import RIGHT
from wrong_bindings import WRONG

from jaxbind import testing
from jaxbind.testing.laws import LAWS

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
EXAMPLES = 300 if THOROUGH else 8

assert len({each.name for each in (*RIGHT, *WRONG)}) == len(RIGHT) + len(WRONG)


def chosen(name, of):
    """Whether a name is among those that are tried outside the thorough profile."""
    return THOROUGH or zlib.crc32(name.encode()) % of == 0


def some(collection):
    """Every fourth, most of them among the slow tests."""
    return every(1 if THOROUGH else 6, [each for each in collection if chosen(each.name, 4)])


def by_name(argument, collection):
    return pytest.mark.parametrize(argument, some(collection), ids=lambda each: each.name)


@by_name("right", RIGHT)
def test_no_false_alarm(right):
    report = testing.report(right.make(), max_examples=EXAMPLES, **right.check)
    assert report.ok, report.violations[0]
    assert report.counts()["passed"] > 8


@by_name("wrong", WRONG)
def test_the_fault_is_found(wrong):
    """By one of the laws that it breaks; the whole check names it for every twentieth."""
    laws = LAWS if chosen(wrong.name, 20) else wrong.laws
    with pytest.raises(testing.LawViolation) as caught:
        testing.check(wrong.make(), max_examples=60, seed=0, laws=laws, **wrong.check)
    violation = caught.value
    assert violation.law in wrong.laws, violation
    assert str(violation).startswith(f"{violation.binding} violates `{violation.law}`: ")
    assert "\n  at   " in str(violation) and "\n  got  " in str(violation)


@pytest.mark.slow
def test_most_diagnoses_are_right():
    """Of every sixteenth fault that has a diagnosis (of all, in the thorough profile)."""
    due = [w for w in WRONG if w.diagnosis is not None][:: 1 if THOROUGH else 16]
    right = 0
    for wrong in due:
        with pytest.raises(testing.LawViolation) as caught:
            testing.check(wrong.make(), max_examples=60, seed=1, laws=wrong.laws, **wrong.check)
        found = caught.value.diagnosis
        right += found is not None and found.kind == wrong.diagnosis
    assert right >= 0.85 * len(due)
