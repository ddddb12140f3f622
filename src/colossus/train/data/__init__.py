"""Text to batches: ``prepare`` once per corpus, ``open_dataset`` in every worker."""

from colossus.train.data.corpus import Corpus as Corpus
from colossus.train.data.corpus import Progress as Progress
from colossus.train.data.corpus import prepare as prepare
from colossus.train.data.dataset import TokenDataset as TokenDataset
from colossus.train.data.dataset import open_dataset as open_dataset
