"""Growing again and again under ``torch.compile``.

torch keeps what it compiled with the code of a forward, which all models of a class share, and falls back to eager
when one forward has been compiled eight times. A model that grows is compiled anew after every ``plant`` and ``merge``,
so it would get there in the fifth round. Both therefore let torch forget what it compiled for the classes of the model.
What is still in use, such as a teacher of the same class, is compiled once more at its next call.
"""

import sys
from types import CodeType

from torch import nn


def forget_compiled(model: nn.Module) -> None:
    """Drop compiled code of the forwards of ``model`` and its modules; nothing where nothing is compiled."""
    if "torch._dynamo" not in sys.modules:
        return
    from torch._dynamo.eval_frame import reset_code

    for kind in {type(module) for module in model.modules()}:
        code = getattr(kind.forward, "__code__", None)
        if isinstance(code, CodeType):
            reset_code(code)
