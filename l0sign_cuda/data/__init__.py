"""Data sets of feature graphs: readers, vocabularies, the paper's protocols, planted interactions."""

from .dataset import Batch, GraphDataset, ReadReport
from .names import read_names
from .planted import PlantedData, planted
from .protocols import PROTOCOLS, prepare_frappe, prepare_movielens_tag
from .reader import FORMATS, read, read_chunks
from .reader import open_dataset as open
from .vocabulary import Field, Vocabulary

__all__ = [
    "FORMATS",
    "PROTOCOLS",
    "Batch",
    "Field",
    "GraphDataset",
    "PlantedData",
    "ReadReport",
    "Vocabulary",
    "open",
    "planted",
    "prepare_frappe",
    "prepare_movielens_tag",
    "read",
    "read_chunks",
    "read_names",
]
