"""Data, batches, checkpoints, run folders, progress, the report: what the search is built on, and no planting."""

from plantops.train.batches import Augment, Batch, epoch_batches, eval_batches
from plantops.train.checkpoint import Checkpoint, CheckpointError, CheckpointStore
from plantops.train.data import DataError, DataParts, ImageData, Normalisation, load, stratified_split
from plantops.train.datasets import from_dataset
from plantops.train.progress import NullProgress, PlainProgress, Progress, RichProgress, make_progress
from plantops.train.run import Run, RunError, RunRecord, read_run
from plantops.train.seeds import derive, generator
from plantops.train.teacher_views import TeacherViews

__all__ = [
    "Augment",
    "Batch",
    "Checkpoint",
    "CheckpointError",
    "CheckpointStore",
    "DataError",
    "DataParts",
    "ImageData",
    "Normalisation",
    "NullProgress",
    "PlainProgress",
    "Progress",
    "RichProgress",
    "Run",
    "RunError",
    "RunRecord",
    "TeacherViews",
    "derive",
    "epoch_batches",
    "eval_batches",
    "from_dataset",
    "generator",
    "load",
    "make_progress",
    "read_run",
    "stratified_split",
]
