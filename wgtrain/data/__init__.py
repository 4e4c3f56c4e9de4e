"""Text and data sets: tokenizers, chat templates, JSONL, batches; no GPU and no file system."""

from wgtrain.chat.bounded import ChatTemplate
from wgtrain.data.batches import Batch, Batches, in_batches, make_batch
from wgtrain.data.jsonl import Dataset, Row, check_vocabulary, load_rows, read_rows
from wgtrain.data.tokenizer import Tokenizer, load_tokenizer
from wgtrain.data.tokenizer_json import tokenizer_json

__all__ = [
    "Batch",
    "Batches",
    "ChatTemplate",
    "Dataset",
    "Row",
    "Tokenizer",
    "check_vocabulary",
    "in_batches",
    "load_rows",
    "load_tokenizer",
    "make_batch",
    "read_rows",
    "tokenizer_json",
]
