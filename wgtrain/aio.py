"""The awaitable forms of the package's functions: `await wgtrain.aio.load_model(...)`."""

from wgtrain import api, merging, planned
from wgtrain.layers import adapter

plan = planned.plan.aio
merge = merging.merge.aio
load_dataset = api.load_dataset.aio
load_model = api.load_model.aio
load_tokenizer = api.load_tokenizer.aio
preview = api.preview.aio
save_adapter = adapter.save_adapter.aio
