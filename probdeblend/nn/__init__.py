"""Networks: modules whose ``forward(image)`` returns a distribution, or logits for masks."""

__all__: list[str] = []
