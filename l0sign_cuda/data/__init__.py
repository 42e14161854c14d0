"""Data sets of feature graphs: readers, vocabularies, the paper's protocols, planted interactions."""

from .dataset import Batch, GraphDataset, ReadReport
from .planted import PlantedData, planted
from .vocabulary import Field, Vocabulary

__all__ = ["Batch", "Field", "GraphDataset", "PlantedData", "ReadReport", "Vocabulary", "planted"]
