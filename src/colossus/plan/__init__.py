"""Which layout a job gets on a machine, what it takes, and why it cannot run where it cannot.

``colossus.plan(job, machine)`` is the Python door: this module can be called.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from colossus.plan.layouts import smaller_layouts as smaller_layouts
from colossus.plan.planner import plan_layout as plan_layout


class _Door(ModuleType):
    """A module that answers when it is called."""

    def __call__(self, job: Any, machine: str, **options: Any) -> Any:
        """The best layouts of ``job`` (a model's name, a file, or a TrainJob) on ``machine`` (a name of the catalog), as an Answer.

        Options as those of the command line: chips, precision, program, sequences, sequence_tokens, tokens, top, objective, deadline.
        An answer draws itself in a notebook; ``answer.plots["roofline"]`` is one picture of it.
        Raises InfeasibleError, with what would fit, where nothing does.
        """
        from colossus.plan.answer import answer
        from colossus.plan.question import ask, question_of
        from colossus.spec.errors import InfeasibleError
        from colossus.spec.job import TrainJob
        from colossus.spec.plan import Infeasible

        top, objective = options.pop("top", 3), options.pop("objective", "time")
        asked = question_of(job, machine, **options) if isinstance(job, TrainJob) else ask(str(job), machine, **options)
        found = answer(
            asked.question,
            name=asked.model,
            total_tokens=asked.total_tokens,
            top=top,
            objective=objective,
            deadline_s=asked.deadline_s,
            said=asked.notes,
        )
        if isinstance(found, Infeasible):
            raise InfeasibleError(found.reason, hint=found.fit)
        return found


sys.modules[__name__].__class__ = _Door
