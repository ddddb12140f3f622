"""events -> Report, and its pictures: JSON, terminal, HTML. Reading and drawing only; nothing here prints."""

from colossus.report.record import Report as Report
from colossus.report.record import Status as Status
from colossus.report.summarize import summarize as summarize
from colossus.report.summarize import summarize_run as summarize_run
from colossus.spec.causes import Cause as Cause
