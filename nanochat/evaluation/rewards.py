"""Calling a reward that somebody else wrote, so that no fault in it ends a run."""

import math
import numbers
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nanochat.common import gather, print0

SECONDS_OF_A_REWARD = 10.0


class RewardTimeout(BaseException):
    """A reward took longer than it may. subtle: no Exception, which a reward may catch itself."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises RewardTimeout in the body after `seconds`.

    subtle: by a signal, which only the main thread gets, and which waits for a call into C to
    return; elsewhere there is no limit.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(number, frame):
        raise RewardTimeout(f"it took more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)  # again, if the body caught the first
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Rewards:
    """reward(conversation, completion) -> float; one that raises, hangs or returns no finite number
    counts as 0. `faults` counts these by kind; the first three are printed."""

    def __init__(self, reward: Callable[[dict, str], float], seconds: float = SECONDS_OF_A_REWARD):
        self.reward, self.seconds = reward, seconds
        self.faults: Counter[str] = Counter()

    def __call__(self, conversation: dict, completion: str) -> float:
        try:
            with time_limit(self.seconds):
                value = self.reward(conversation, completion)
            if isinstance(value, numbers.Real) and math.isfinite(value):
                return float(value)
            kind, why = "no number", f"it returned {value!r}, expected a finite number"
        except RewardTimeout as error:
            kind, why = "too slow", str(error)
        except (Exception, SystemExit) as error:
            kind, why = "raised", repr(error)
        self.faults[kind] += 1
        if self.faults.total() <= 3:
            print0(f"the reward of {completion[:80]!r} counts as 0: {why}")
        return 0.0

    def print_faults(self) -> None:
        """Prints how many rewards counted as 0, by kind, over all ranks."""
        faults = sum(gather([self.faults]), Counter())
        if faults:
            print0(f"rewards that counted as 0: {dict(faults)}")
