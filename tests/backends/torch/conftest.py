"""Where there is no GPU, kernels run in Triton's interpreter; it must be told before a kernel is imported.

It raises where a kernel leaves the tensors that it was given (interpreted_bounds.py).
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    import interpreted_bounds
    from triton.runtime import interpreter

    patch_tensor = interpreter._patch_lang_tensor

    def patch_index(tensor, scope):
        """Triton 3.6's interpreter cannot use a loaded scalar as a loop's bound with NumPy 2.4: int() of shape [1]."""
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_index
    interpreted_bounds.install()
