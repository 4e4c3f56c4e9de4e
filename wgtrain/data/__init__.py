"""Text and data sets: tokenizers, chat templates, JSONL, batches; no GPU and no file system."""

from wgtrain.data.tokenizer import Encoding, Tokenizer, load_tokenizer
from wgtrain.data.tokenizer_json import tokenizer_json

__all__ = ["Encoding", "Tokenizer", "load_tokenizer", "tokenizer_json"]
