"""The twin: months of a machine's life played out event by event, with the decisions of ``policy``, in seconds."""

from colossus.twin.simulate import simulate as simulate
from colossus.twin.simulate import simulated_events as simulated_events
from colossus.twin.workload import Workload as Workload
