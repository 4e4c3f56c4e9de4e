"""LoRA for models of one's own: named linear layers with activations between."""
