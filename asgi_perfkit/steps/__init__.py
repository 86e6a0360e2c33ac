"""A piece of work on an event loop, step by step.

A coroutine runs in steps: from the moment the loop resumes it to the moment it suspends, the loop belongs to it
alone. Bracketing each step with two readings of a clock therefore gives, exactly and under any concurrency, how long
this work occupied the loop and how long it kept everybody else waiting at a stretch.

* :class:`Account` is where the figures of one piece of work are kept;
* :class:`DrivenAccount` runs its coroutine and charges itself each step;
* :func:`follow_children` makes the tasks that the work starts charge the same account, until it is closed.
"""

from asgi_perfkit.steps.account import (
    Account,
    LateObserver,
    Profile,
    StepObserver,
    current_account,
)
from asgi_perfkit.steps.drive import DONE, DrivenAccount, Owner
from asgi_perfkit.steps.follow import follow_children
from asgi_perfkit.steps.loop import on_event_loop

__all__ = [
    "DONE",
    "Account",
    "DrivenAccount",
    "LateObserver",
    "Owner",
    "Profile",
    "StepObserver",
    "current_account",
    "follow_children",
    "on_event_loop",
]
