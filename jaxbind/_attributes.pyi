from typing import Any

class Attributes:
    def __init__(self, values: dict[str, Any]) -> None: ...
