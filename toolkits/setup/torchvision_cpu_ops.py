"""Lets a CUDA build of torchvision be imported beside a CPU build of torch.

The registry's torchvision is built for CUDA. With a CPU torch its compiled operators do not load, and ``import
torchvision`` stops at ``operator torchvision::nms does not exist``. transformers' image processors and vLLM import
torchvision but use none of those operators, so declaring their signatures is enough.

``install.sh`` copies this file and a ``.pth`` line into the virtual environment, and only where ``import torchvision``
fails. It has to be a ``.pth``: child processes import torchvision before any code of the project runs. Importing this
module does nothing but put a finder in front; the finder acts once, when torchvision is first imported, and leaves.
"""

import sys

SIGNATURES = {
    "torchvision::nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "torchvision::qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


class DeclareOperators:
    """A meta-path finder that finds nothing; it declares the operators when torchvision is asked for."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Declares the missing operators on the first import of torchvision; always returns None."""
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            for operator, signature in SIGNATURES.items():
                torch.library.define(operator, signature)


sys.meta_path.insert(0, DeclareOperators())
