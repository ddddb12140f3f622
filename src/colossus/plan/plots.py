"""All pictures of a plan, with what they need worked out: the tornado, numbers of chips side by side, the roofline."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from colossus.plan.front import pareto, scaling
from colossus.plan.roofline import roofline
from colossus.plan.search import Question, search
from colossus.plan.whatif import Swing, tornado
from colossus.report.picture import Picture
from colossus.report.plan_page import page
from colossus.report.plan_plots import pictures
from colossus.report.roofline import Roofline
from colossus.spec.answer import Answer, Choice


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What stands beside an answer when it is asked for."""

    tornado: list[Swing] = field(default_factory=list)
    scaling: list[Choice] = field(default_factory=list)
    front: list[Choice] = field(default_factory=list)
    roofline: Roofline | None = None

    def pictures(self, found: Answer) -> list[Picture]:
        return pictures(found, tornado=self._bars(), scaling=self.scaling, front=self.front, roofline=self.roofline)

    def page(self, found: Answer) -> str:
        return page(found, tornado=self._bars(), scaling=self.scaling, front=self.front, roofline=self.roofline)

    def _bars(self) -> list[tuple[str, float | None, float | None]]:
        return [(swing.figure, swing.low_s, swing.high_s) for swing in self.tornado]


def extras(question: Question, found: Answer, *, names: frozenset[str] = frozenset({"tornado", "scaling", "front", "roofline"})) -> Extras:
    """Those of the names. ``question``: as asked, before cost, energy or a deadline chose the chips."""
    chosen = replace(question, num_chips=found.num_chips)
    return Extras(
        tornado=tornado(chosen) if "tornado" in names else [],
        scaling=scaling(question, found.total_tokens) if "scaling" in names else [],
        front=pareto(question, found.total_tokens) if "front" in names else [],
        roofline=_roofline(chosen) if "roofline" in names else None,
    )


def pictures_of(question: Question, found: Answer) -> list[Picture]:
    """Every picture of an answer."""
    return extras(question, found).pictures(found)


def _roofline(question: Question) -> Roofline:
    candidates = search(question)
    return roofline(question, candidates, int(candidates.order()[0]))
