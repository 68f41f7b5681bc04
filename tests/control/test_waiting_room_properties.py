"""Whatever comes, ends and goes: nobody is lost, nothing is charged twice, and those who wait are served alike."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from waiting_people import People

from llumnix.policy.classes import ServiceClass
from llumnix.types import RequestId
from service_classes import classes_of, tenant

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "free", "end", "go", "wait"]),
        st.sampled_from(["a", "b"]),
        st.sampled_from(["c", "d"]),
        st.integers(1, 400),
    ),
    max_size=80,
)


@given(STEPS)
def test_every_request_is_declined_or_held_or_called_once_and_what_it_reserved_is_settled(
    steps: list[tuple[str, str, str, int]],
) -> None:
    both = (ServiceClass(name="c", max_hold_s=5.0), ServiceClass(name="d", max_held=3, share=2.0))
    limits = {"tokens_per_minute": 5000.0, "requests_per_minute": 20.0}
    people = People(classes_of(tenant("a", "c", "d", **limits), tenant("b", "c", "d", concurrent=2), classes=both))
    held: set[str] = set()
    running: list[str] = []
    for number, (what, who, cls, amount) in enumerate(steps):
        match what:
            case "ask":
                if people.ask(f"{who}{number}", who, cls, prompt=amount, output=amount) is None:
                    held.add(f"{who}{number}")
            case "free":
                people.free += 1
            case "end" if running:
                people.end(running.pop(amount % len(running)))
            case "go" if held:
                gone = sorted(held)[amount % len(held)]
                people.room.left(RequestId(gone))
                held.remove(gone)
            case "wait":
                people.now_s += amount / 40
        for name in people.calls():
            held.remove(name.rstrip("!"))
            if not name.endswith("!"):
                running.append(name)
        assert people.room.held == len(held)
        assert sum(name.startswith("b") for name in running) <= 2
    people.now_s += 10.0
    people.calls(free=200)
    people.room.change(people.classes, people.now_s)
    people.now_s += 100.0
    tokens = next(each for each in people.room.allowances(people.now_s, "a") if each.what == "tokens")
    assert tokens.remaining <= tokens.limit
    for name in running:
        people.end(name)
    assert all(
        people.room.account(who).running == sum(r.startswith(who) for r in people.outputs if r in people.room._sent)
        for who in "ab"
    )


@given(st.lists(st.tuples(st.integers(1, 2000), st.integers(1, 256)), min_size=4, max_size=30), st.integers(2, 4))
def test_work_of_two_tenants_who_always_wait_differs_by_no_more_than_two_requests(
    sizes: list[tuple[int, int]], count: int
) -> None:
    """Work: prompt tokens and twice the output. In each step one begins, and the oldest ends."""
    people = People(classes_of(*(tenant(f"t{who}") for who in range(count))))
    served = [0] * count
    largest = max(prompt + 2 * 256 for prompt, _ in sizes)
    for who in range(count):
        for number, (prompt, output) in enumerate(sizes):
            people.ask(f"{who}-{number}", f"t{who}", prompt=prompt, output=output)
    while all(any(name.startswith(f"{who}-") for name in people.outputs) for who in range(count)):
        left = {who: sum(q.tenant == f"t{who}" for q in people.room._held.queues) for who in range(count)}
        if not all(left.values()):
            break
        (called,) = people.calls(free=1)
        who = int(called.partition("-")[0])
        ask = people.asked[RequestId(called)]
        served[who] += ask.asked.prompt_tokens + 2 * ask.most_output_tokens
        people.end(called)
        assert max(served) - min(served) <= 2 * largest
