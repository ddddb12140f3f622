"""Which layout a job gets on a machine, and why it cannot run where it cannot."""

from colossus.plan.layouts import smaller_layouts as smaller_layouts
from colossus.plan.planner import plan_layout as plan_layout
