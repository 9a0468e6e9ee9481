"""A GPU that is not there: tensors whose Python device is "cuda:0" while their numbers lie on the CPU.

What a GPU refuses raises: operations on tensors of both devices, and NumPy. Half precision is rounded float32. The
same as "mps:0", where layouts raise that Apple's GPUs have computed wrongly.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

HALF = (torch.float16, torch.bfloat16)
PRODUCTS = ("convolution", "convolution_backward", "mm", "addmm", "bmm", "baddbmm")
FAULTY_ON_MPS = ("convolution", "native_batch_norm")  # in some versions, unless contiguous
FROM_BOTH = ("copy_", "index", "index_put", "index_put_", "_index_put_impl_")  # copies, and indices of the CPU
autocast = torch.autocast


class CudaTensor(Tensor):
    """A tensor on the GPU; operations on it give such."""

    device = property(lambda self: FakeCuda.device)
    is_cuda = property(lambda self: FakeCuda.device.type == "cuda")
    is_cpu = False
    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = function.overloadpacket.__name__
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        mixed = any(not isinstance(x, CudaTensor) and x.dim() for x in tensors)
        # Within a backward pass, the formulas of PyTorch's own operations make zeros on the tensors' true device.
        if mixed and name not in FROM_BOTH and torch._C._current_graph_task_id() < 0:
            raise RuntimeError(f"{name}: tensors of the CPU and the GPU")
        if FakeCuda.device.type == "mps" and name in FAULTY_ON_MPS and not all(x.is_contiguous() for x in tensors):
            raise RuntimeError(f"{name}: not contiguous")
        rounded = next((x.dtype for x in tensors if x.dtype in HALF), None) if name in PRODUCTS else None
        with no_dispatch():
            if rounded:
                args = tree_map_only(Tensor, lambda x: x.float(), args)
            result = function(*args, **(kwargs or {}))
            if rounded:
                result = tree_map_only(Tensor, lambda x: x.to(rounded), result)
        return result if name == "copy_" else tree_map(to_gpu, result)

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy

    def __reduce_ex__(self, protocol: int) -> Any:  # checkpoints are read onto the CPU
        return to_cpu(self).__reduce_ex__(protocol)


def to_gpu(x: Any) -> Any:
    """The same memory on the GPU; what is no tensor of the CPU stays as it is."""
    own = not isinstance(x, Tensor) or isinstance(x, CudaTensor)
    return x if own else Tensor._make_subclass(CudaTensor, x, x.requires_grad)


def to_cpu(x: Tensor) -> Tensor:
    """A copy."""
    with no_dispatch():
        return x.detach().clone() if isinstance(x, CudaTensor) else x


class FakeCuda(TorchFunctionMode):
    """Within it, device names lead to such tensors."""

    device = torch.device("cuda:0")

    def __enter__(self) -> "FakeCuda":
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
        super().__exit__(*error)

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name, kwargs = getattr(function, "__name__", ""), dict(kwargs or {})
        if name in ("to", "cpu", "cuda") and isinstance(args[0], Tensor):
            x, *rest = args
            if name != "to":
                rest, kwargs = [name], {}
            elif rest and isinstance(rest[0], Tensor):
                rest[0] = rest[0].device
            kwargs.pop("copy", None)
            device, dtype, _, layout = torch._C._nn._parse_to(*rest, **kwargs)
            if device is not None:
                x = to_cpu(x) if device.type == "cpu" else to_gpu(x)
            wanted = {"dtype": dtype or x.dtype, "memory_format": layout or torch.preserve_format}
            return x if dtype is layout is None else x.to(**wanted)
        if name == "tolist":
            return to_cpu(args[0]).tolist()
        device = kwargs.get("device")
        if device is not None and torch.device(device).type != "cpu":
            return tree_map(to_gpu, function(*args, **kwargs | {"device": "cpu"}))
        return function(*args, **kwargs)
