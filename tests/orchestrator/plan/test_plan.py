"""Tasks and the graph: dependencies, sharing, refused plans."""

import pytest

from tests.orchestrator.toys import diamond, named, task
from wmarena.orchestrator.plan.plan import Plan
from wmarena.orchestrator.plan.task import Failure, FailureKind, Kind, TaskId


def test_a_task_waits_once_for_each_parent_and_predecessor() -> None:
    """A parent in two roles, or one that is also named in ``after``, is one thing to wait for."""
    first, second = task("first"), task("second")
    both = task("both", first, first, second, after=[first])

    assert both.parent_ids == (first.id, second.id)
    assert both.waits_for == (first.id, second.id)
    assert both.parent("p2") == second.id


def test_edges_are_counted_once_in_the_graph() -> None:
    """A task that is parent and predecessor at once has its child listed once, else it would be released too soon."""
    first = task("first")
    child = task("child", first, first, after=[first])

    assert Plan([first, child]).children(first.id) == [child.id]


def test_the_same_work_is_planned_once() -> None:
    """A task asked for twice is shared, and the plan says how much that saved."""
    plan = diamond()
    before = len(plan)

    new = plan.add([task("root"), task("other")])

    assert [t.label for t in new] == ["other"]
    assert (len(plan), plan.shared) == (before + 1, 1)


def test_a_parent_must_be_planned_first() -> None:
    """A task without its parent is refused, and leaves no trace in the plan."""
    parent, root = task("parent"), task("root")
    plan = Plan([root])

    with pytest.raises(KeyError, match="expected parents to be planned first, got 'child'"):
        plan.add([task("child", root, parent)])
    assert len(plan) == 1
    assert plan.children(root.id) == []


def test_a_task_comes_with_what_it_waits_for_and_takes_along_what_consumes_it() -> None:
    """Ancestors are all that a task waits for, in planning order; consumers are not those that merely come after."""
    root, before = task("root"), task("before")
    middle, later = task("middle", root, after=[before]), task("later", after=[root])
    last = task("last", middle, root)
    plan = Plan([root, before, middle, later, last])

    assert plan.with_ancestors([last.id]) == [root, before, middle, last]
    assert plan.with_consumers(root.id) == {root.id, middle.id, last.id}


def test_a_plans_digest_is_of_the_set_of_tasks() -> None:
    """Order and labels do not change it, one more task does."""
    one, two = task("one"), task("two")

    assert Plan([one, two]).digest == Plan([two, one]).digest
    assert Plan([one]).digest != Plan([one, two]).digest


def test_counts_follow_the_pipeline() -> None:
    """Counts come in the order train, embed, attack, verify, without what is absent."""
    plan = Plan([task("v", kind=Kind.VERIFY), task("a"), task("b"), task("e", kind=Kind.EMBED)])

    assert list(plan.counts().items()) == [("train", 2), ("embed", 1), ("verify", 1)]


def test_children_come_in_planning_order() -> None:
    """So that equal priorities are served in the order in which rows were asked for."""
    plan = diamond()

    assert [plan.tasks[c].label for c in plan.children(named(plan, "root").id)] == ["left", "right", "leaf"]


@pytest.mark.parametrize("kind", FailureKind)
def test_only_what_may_end_differently_is_tried_again(kind: FailureKind) -> None:
    """Errors, divergence and cancellation are final; a damaged parent is computed again instead."""
    final = {FailureKind.ERROR, FailureKind.DIVERGED, FailureKind.CORRUPT, FailureKind.CANCELLED}

    assert kind.retryable == (kind not in final)


def test_a_failure_says_its_kind_first() -> None:
    """Tables show the cause before the message."""
    assert Failure(FailureKind.OUT_OF_MEMORY, "80 GiB", damaged=TaskId("x")).line() == "out_of_memory: 80 GiB"
