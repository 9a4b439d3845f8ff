"""What the Python face of the operators asks of a PopTorch, answered by the library built for this CPU."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, List

from torch import Tensor

from custom_ops import DOMAIN, VERSION, host_operator
from custom_ops.host_library import Library


@dataclasses.dataclass
class HostPopTorch:
    """What the functions ask of a PopTorch, with the library's operators at once: no model is traced."""

    library: Library
    calls: List[Dict[str, Any]] = dataclasses.field(default_factory=list)

    def isRunningOnIpu(self) -> bool:
        return True

    def custom_op(self, inputs: Any, name: str, attributes: Dict[str, Any], **call: Any) -> List[Tensor]:
        outputs = host_operator.run(self.library, DOMAIN, name, VERSION, attributes, inputs)
        self.calls.append({**call, "outputs": outputs})
        return outputs
