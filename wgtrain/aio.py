"""The awaitable forms of the package's functions: `await wgtrain.aio.load_model(...)`."""

from wgtrain import api, planned

plan = planned.plan.aio
load_dataset = api.load_dataset.aio
load_model = api.load_model.aio
load_tokenizer = api.load_tokenizer.aio
preview = api.preview.aio
