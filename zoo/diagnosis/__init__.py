"""Diagnosis: the checks of a practitioner before training, on real batches: ``diagnose(module, datamodule)``."""

from zoo.diagnosis.report import Finding, Report
from zoo.diagnosis.runner import diagnose, run

__all__ = ["Finding", "Report", "diagnose", "run"]
