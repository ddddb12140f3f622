"""What a user writes and what flows between the parts: jobs, machines, layouts, plans, events, runs, errors, units."""

from colossus.spec.errors import ColossusError as ColossusError
from colossus.spec.event import Event as Event
from colossus.spec.job import TrainJob as TrainJob
from colossus.spec.job import load_job as load_job
from colossus.spec.layout import Layout as Layout
from colossus.spec.machine import Machine as Machine
from colossus.spec.model import ModelCard as ModelCard
from colossus.spec.plan import Infeasible as Infeasible
from colossus.spec.plan import Plan as Plan
from colossus.spec.run import Run as Run
