"""Studies: the settings to compare, the runs that they need and how far those runs are."""

from experiments.study.config_changes import changed_config
from experiments.study.definition import Point, Study
from experiments.study.grid import product, zipped
from experiments.study.loading import load_study
from experiments.study.progress import Progress

__all__ = ["Point", "Progress", "Study", "changed_config", "load_study", "product", "zipped"]
