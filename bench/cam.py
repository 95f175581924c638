"""Grad-CAM beside one forward pass, and beside captum's and pytorch-grad-cam's (`pip install kdlib[bench]`)."""

from importlib.metadata import version

import torch
from torch import nn

from bench.timing import ratio, side_by_side, timed
from kdlib.probes.localization import gradcam

TITLE = "Grad-CAM"
SAYS = """Maps of one class for each image, networks of torchvision with random weights and 1,000 classes, float32, one thread. The
forward pass runs without a graph. captum {captum}: `LayerGradCam` with `relu_attributions`. pytorch-grad-cam {gradcam}: `GradCAM`,
which also enlarges and rescales its maps; values are compared before that, and differences are shares of the largest value.
Target: at most 1.1 forward passes where the layer enters global average pooling and a linear head (ResNet-18, `layer4`); elsewhere the
gradient's way from the logits down to the layer comes on top."""
HEADER = ("network", "layer", "batch", "ours / forward pass", "ours / captum", "ours / pytorch-grad-cam", "difference of values")
NEEDS = ("captum", "pytorch_grad_cam", "torchvision")


def problem(name: str, size: int, batch: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    import torchvision

    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None).eval(), torch.rand(batch, 3, size, size), torch.randint(1000, (batch,))


def captums(net: nn.Module, x: torch.Tensor, y: torch.Tensor, layer: str):
    """captum's maps as a function, which is also what gives their values."""
    from captum.attr import LayerGradCam

    method = LayerGradCam(net, net.get_submodule(layer))
    return [lambda: method.attribute(x, target=y, relu_attributions=True)[:, 0].detach()] * 2


def pytorch_grad_cams(net: nn.Module, x: torch.Tensor, y: torch.Tensor, layer: str):
    """pytorch-grad-cam's maps as a function, and another for their values before they are enlarged and rescaled."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    method, targets = GradCAM(net, [net.get_submodule(layer)]), [ClassifierOutputTarget(label) for label in y.tolist()]

    def plain():
        method(x, targets)
        a, slope = (t[0].numpy() for t in (method.activations_and_grads.activations, method.activations_and_grads.gradients))
        return torch.from_numpy(method.get_cam_image(x, None, targets, a, slope)).relu()

    return lambda: method(x, targets), plain


def rows(quick: bool):
    rounds, size, batch = (1, 64, 4) if quick else (9, 112, 16)
    for title, name, layer in (("ResNet-18", "resnet18", "layer4"), ("ResNet-18", "resnet18", "layer2"), ("VGG-11", "vgg11", "features")):
        net, x, y = problem(name, size, batch)

        def ours():
            return gradcam(net, x, y, layer=layer)

        found, difference = ours(), 0.0
        ratios = [side_by_side(timed(ours), timed(torch.no_grad()(lambda: net(x))), rounds)]
        for make in captums, pytorch_grad_cams:  # the last, since it leaves hooks in the network
            peer, values = make(net, x, y, layer)
            ratios.append(side_by_side(timed(ours), timed(peer), rounds))
            difference = max(difference, float((found - values()).abs().max() / found.max()))
        yield title, f"`{layer}`", str(batch), *(ratio(pair.ratios) for pair in ratios), f"{difference:.1g}"


def facts() -> dict[str, str]:
    import captum  # noticed to be absent before anything is timed
    import pytorch_grad_cam
    import torchvision

    return {"captum": version("captum"), "gradcam": version("grad-cam")}
