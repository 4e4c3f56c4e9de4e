"""LoRA fine-tuning of GGUF models through WebGPU: `load_model`, `load_dataset`, `Trainer`.

Everything is imported at first use, so that `import wgtrain` is quick and needs no native package.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "DeviceError": "errors",
    "DeviceLostError": "errors",
    "FileError": "errors",
    "NonFiniteError": "errors",
    "OptionError": "errors",
    "OutOfMemoryError": "errors",
    "ShaderError": "errors",
    "WgtrainError": "errors",
    "Adapter": "files.adapters",
    "read_adapter_gguf": "files.adapters",
    "read_adapter_peft": "files.adapters",
    "list_adapters": "gpu",
    "run": "gpu",
    "plan": "planned",
    "merge": "merging",
    "load_dataset": "api",
    "load_model": "api",
    "load_tokenizer": "api",
    "preview": "api",
    "templating": "runs.chats",
    "EvalResult": "infer.evaluation",
    "compare": "infer.comparison",
    "Request": "infer.generation",
    "Sampling": "infer.sampling",
    "history": "infer.generation",
    "LoraConfig": "train.config",
    "TrainConfig": "train.config",
    "StepResult": "train.results",
    "Trainer": "train.trainer",
    "Activation": "layers.description",
    "Linear": "layers.description",
    "LinearModel": "layers.model",
    "inject_lora": "layers.adapter",
    "load_adapter": "layers.adapter",
    "save_adapter": "layers.adapter",
    "total_param_count": "layers.adapter",
    "trainable_param_count": "layers.adapter",
}
_MODULES = ("aio", "errors", "random")

__all__ = ["__version__", "aio", *sorted(_WHERE)]

if TYPE_CHECKING:
    from wgtrain import aio as aio
    from wgtrain.api import load_dataset as load_dataset
    from wgtrain.api import load_model as load_model
    from wgtrain.api import load_tokenizer as load_tokenizer
    from wgtrain.api import preview as preview
    from wgtrain.errors import DeviceError as DeviceError
    from wgtrain.errors import DeviceLostError as DeviceLostError
    from wgtrain.errors import FileError as FileError
    from wgtrain.errors import NonFiniteError as NonFiniteError
    from wgtrain.errors import OptionError as OptionError
    from wgtrain.errors import OutOfMemoryError as OutOfMemoryError
    from wgtrain.errors import ShaderError as ShaderError
    from wgtrain.errors import WgtrainError as WgtrainError
    from wgtrain.files.adapters import Adapter as Adapter
    from wgtrain.files.adapters import read_adapter_gguf as read_adapter_gguf
    from wgtrain.files.adapters import read_adapter_peft as read_adapter_peft
    from wgtrain.gpu import list_adapters as list_adapters
    from wgtrain.gpu import run as run
    from wgtrain.infer.comparison import compare as compare
    from wgtrain.infer.evaluation import EvalResult as EvalResult
    from wgtrain.infer.generation import Request as Request
    from wgtrain.infer.generation import history as history
    from wgtrain.infer.sampling import Sampling as Sampling
    from wgtrain.layers.adapter import inject_lora as inject_lora
    from wgtrain.layers.adapter import load_adapter as load_adapter
    from wgtrain.layers.adapter import save_adapter as save_adapter
    from wgtrain.layers.adapter import total_param_count as total_param_count
    from wgtrain.layers.adapter import trainable_param_count as trainable_param_count
    from wgtrain.layers.description import Activation as Activation
    from wgtrain.layers.description import Linear as Linear
    from wgtrain.layers.model import LinearModel as LinearModel
    from wgtrain.merging import merge as merge
    from wgtrain.planned import plan as plan
    from wgtrain.runs.chats import templating as templating
    from wgtrain.train.config import LoraConfig as LoraConfig
    from wgtrain.train.config import TrainConfig as TrainConfig
    from wgtrain.train.results import StepResult as StepResult
    from wgtrain.train.trainer import Trainer as Trainer


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(import_module(f"wgtrain.{_WHERE[name]}"), name)
    elif name in _MODULES:
        value = import_module(f"wgtrain.{name}")
    else:
        raise AttributeError(f"module 'wgtrain' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
