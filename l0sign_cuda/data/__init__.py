"""Data sets of feature graphs: readers, vocabularies, the paper's protocols, planted interactions."""

from .dataset import Batch, GraphDataset, ReadReport
from .planted import PlantedData, planted
from .reader import FORMATS, read, read_chunks
from .reader import open_dataset as open
from .vocabulary import Field, Vocabulary

__all__ = [
    "FORMATS",
    "Batch",
    "Field",
    "GraphDataset",
    "PlantedData",
    "ReadReport",
    "Vocabulary",
    "open",
    "planted",
    "read",
    "read_chunks",
]
