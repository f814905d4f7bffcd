"""The checks a practitioner does before training, on real batches: ``diagnose(module, datamodule)``."""

from zoo.diagnosis.examiner import diagnose, run
from zoo.diagnosis.report import Finding, Report

__all__ = ["Finding", "Report", "diagnose", "run"]
