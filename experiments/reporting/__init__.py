"""Reads the results of a study, draws them and writes the report."""

from experiments.reporting.collect import collect
from experiments.reporting.report_files import markdown_table, write_report
from experiments.reporting.results import Results, Summary

__all__ = ["Results", "Summary", "collect", "markdown_table", "write_report"]
