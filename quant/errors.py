"""The one error this package raises on purpose."""


class QuantError(ValueError):
    """A request that cannot be met. The message is one line: the layer or value, the limit, the way out."""
