"""Text and data sets: tokenizers, chat templates, JSONL, batches; no GPU and no file system."""

from wgtrain.chat.bounded import ChatTemplate
from wgtrain.chat.rendered import Rendered
from wgtrain.data.batches import Batch, Batches, make_batch
from wgtrain.data.jsonl import Dataset, Row, chat_template, check_vocabulary, load_rows
from wgtrain.data.tokenizer import Encoding, Tokenizer, load_tokenizer
from wgtrain.data.tokenizer_json import tokenizer_json

__all__ = [
    "Batch",
    "Batches",
    "ChatTemplate",
    "Dataset",
    "Encoding",
    "Rendered",
    "Row",
    "Tokenizer",
    "chat_template",
    "check_vocabulary",
    "load_rows",
    "load_tokenizer",
    "make_batch",
    "tokenizer_json",
]
