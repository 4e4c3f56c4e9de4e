"""The layers of a model by its file's numbers: whom each sees and how its positions turn."""

from wgtrain.files.architecture import Architecture, Values
from wgtrain.model.layers import Layer, Rope


def make_layers(row: Architecture, values: Values) -> tuple[Layer, ...]:
    """Every layer of a model."""
    size = values["rotary"]
    whole = Rope(float(values["rope_theta"]), size, row.rope_interleaved)
    local = Rope(float(values["local_theta"]), size, row.rope_interleaved)
    layers = []
    for windowed in _windowed(row, values):
        window = values["window"] if windowed else 0
        rope = local if window else whole
        layers.append(Layer(rope, window, float(values.get("softcap", 0.0))))
    return tuple(layers)


def _windowed(row: Architecture, values: Values) -> list[bool]:
    """Which layers have a window, where the model has any."""
    if "windowed" in values:
        return list(values["windowed"])
    every = values.get("window_pattern", row.window_pattern) or values["n_layer"] + 1
    return [il % every < every - 1 for il in range(values["n_layer"])]
