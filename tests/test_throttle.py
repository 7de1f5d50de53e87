"""How long failed logins make the next ones wait, and when they are forgotten."""

from __future__ import annotations

import pytest

from rallychat.accounts.throttle import FREE, LONGEST, Throttle
from rallychat.errors import TooManyTries


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_failed_logins_wait_longer_each_time_and_one_that_waited_is_looked_at() -> None:
    clock = Clock()
    throttle = Throttle(clock)
    for _ in range(FREE["pair"]):
        throttle.attempt("ada", "192.0.2.1")
    waits = []
    for _ in range(4):
        with pytest.raises(TooManyTries) as refused:
            throttle.attempt("ada", "192.0.2.1")
        waits.append(refused.value.retry_after)
        clock.now += refused.value.retry_after
        throttle.attempt("ada", "192.0.2.1")
    assert waits == [1, 2, 4, 8]


def test_who_guesses_at_many_accounts_waits_and_their_owner_elsewhere_does_not() -> None:
    throttle = Throttle(Clock())
    for at in range(FREE["address"]):
        throttle.attempt(f"user{at}", "192.0.2.66")
    with pytest.raises(TooManyTries):
        throttle.attempt("fresh", "192.0.2.66")
    throttle.attempt("user0", "192.0.2.1")


def test_the_right_password_forgives_what_was_mistyped_but_not_what_was_tried_at_others() -> None:
    throttle = Throttle(Clock())
    for _ in range(3):
        for _ in range(FREE["pair"] - 1):
            throttle.attempt("ada", "192.0.2.1")
        throttle.forgive("ada", "192.0.2.1")
    for at in range(FREE["address"] - 3 * (FREE["pair"] - 2)):
        throttle.attempt(f"user{at}", "192.0.2.1")
    with pytest.raises(TooManyTries):
        throttle.attempt("last", "192.0.2.1")


def test_what_is_mistyped_now_and_then_from_one_address_never_keeps_everybody_there_out() -> None:
    clock = Clock()
    throttle = Throttle(clock)
    for at in range(10 * FREE["address"]):
        throttle.attempt(f"user{at}", "192.0.2.1")
        clock.now += 2 * LONGEST
    for at in range(FREE["address"]):
        throttle.attempt(f"somebody{at}", "192.0.2.1")


def test_who_goes_on_guessing_as_soon_as_it_is_allowed_gets_four_tries_an_hour() -> None:
    clock = Clock()
    throttle = Throttle(clock)
    while clock.now < 24 * 3600:
        try:
            throttle.attempt("ada", "192.0.2.1")
        except TooManyTries as refused:
            clock.now += refused.retry_after
    tries, until = 0, clock.now + 10 * 3600
    while clock.now < until:
        throttle.attempt("ada", "192.0.2.1")
        tries += 1
        with pytest.raises(TooManyTries) as later:
            throttle.attempt("ada", "192.0.2.1")
        clock.now += later.value.retry_after
    assert tries == 40
