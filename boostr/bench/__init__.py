"""Measuring models: `bench` loads one and times it; what `boostr bench` prints."""

from boostr.bench.measure import EXCLUDED, Report, Row, StepCost, Workload, bench

__all__ = ["EXCLUDED", "Report", "Row", "StepCost", "Workload", "bench"]
