"""The detector: rows of a YAML, run in order."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

import models.blocks
import models.heads
from models.heads.base import Head
from models.heads.detect import ImplicitA, ImplicitM
from models.lineage import Ancestor
from models.parser import RowSpec, parse
from models.pruning_rules import detach_channels
from models.registry import ACTIVATIONS
from models.training_checks import single_values_borne
from models.widths import widths_of
from utils.config import load_yaml, resolve
from utils.errors import UserError
from utils.layout import channels_last
from utils.profiling import count_macs, count_operations, count_parameters
from utils.registry import import_files_of

import_files_of(models.blocks)
import_files_of(models.heads)


@dataclass(frozen=True)
class Row(RowSpec):
    """Describe one YAML row of a built model."""

    module: nn.Module


class Model(nn.Module):
    """Run the rows of a parsed YAML, the detection head last.

    `model[i]` is the module of output i (the further outputs of one row are an `nn.Identity` each),
    so that `model.N` means the same in `from`, in layer options and in parameter names.
    """

    def __init__(self, cfg: Mapping[str, Any], where: str = "model"):
        super().__init__()
        self.cfg: dict[str, Any] = copy.deepcopy(dict(cfg))
        plan = parse(self.cfg, where)
        self.model = nn.ModuleList(plan.modules)
        self.specs: tuple[RowSpec, ...] = tuple(plan.specs)
        if not self.specs or not isinstance(self.model[self.specs[-1].index], Head):
            raise UserError(
                f"{where}: the last row must be a detection head, as [[17, 20, 23], 1, Detect, [nc,"
                " anchors]]"
            )
        self.nc = self.head.nc
        self.names = [str(i) for i in range(self.nc)]
        self.imgsz = 640  # pixels it was trained at; a checkpoint knows better
        self.ancestors: tuple[Ancestor, ...] = ()  # models that it was cut from, the latest first
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps, module.momentum = 1e-3, 0.03
        self.deployed = False
        self.built_widths = widths_of(self)  # what the checkpoint compares a pruned model with
        self.max_stride = max(plan.max_stride, int(self.head.stride.max()))
        """Sides of images are multiples of it, in pixels: the largest stride of a map in use."""
        self._last_use = {i: spec.index for spec in self.specs for i in spec.source}
        given = {i for i, output in enumerate(plan.outputs) if output is not None}
        self._unread = given - self._last_use.keys() - {self.specs[-1].index}
        self.has_idle_layers = bool(self._unread)

    @property
    def head(self) -> Head:
        """Detection head: the module of the last row."""
        return cast(Head, self.model[self.specs[-1].index])

    @property
    def stride(self) -> Tensor:
        """Pixels a cell of each level, (nl,)."""
        return self.head.stride

    @property
    def rows(self) -> list[Row]:
        """Rows of the YAML with their modules."""
        return [Row(**vars(spec), module=self.model[spec.index]) for spec in self.specs]

    def forward(self, x: Tensor) -> Any:
        """Map images (N, 3, H, W) in 0..1 to the output of the head.

        The output is a list of raw maps in training and `Detections(decoded, raw)` in eval mode.
        """
        if self.training and len(x) == 1:
            with single_values_borne(self):
                return self._run(x)
        return self._run(x)

    def _run(self, x: Tensor) -> Any:
        """Run the rows in their order; see `forward`."""
        outputs: dict[int, Any] = {-1: x}
        result: Any = x
        for spec in self.specs:
            inputs = [outputs[i] for i in spec.source]
            result = self.model[spec.index](inputs if spec.listed else inputs[0])
            if spec.outputs == 1:
                outputs[spec.index] = result
            else:
                rest = range(spec.index + 1, spec.index + spec.outputs)
                outputs |= {spec.index: result[0]} | {
                    i: self.model[i](result[i - spec.index]) for i in rest
                }
            for i in self._unread.intersection(range(spec.index, spec.index + spec.outputs)):
                detach_channels(
                    outputs.pop(i)
                )  # pruning must know of it: the layers that make it run all the same
            for i in spec.source:  # free what nobody reads any more
                if self._last_use[i] == spec.index:
                    outputs.pop(i, None)
        return result

    def fuse(self) -> "Model":
        """Return a new deployed model in eval mode: batch norms, branches and implicits folded.

        This model stays as it is. The weights of the new one are stored channels last, which is
        quicker for images stored likewise.
        """
        deployed = copy.deepcopy(self).eval()
        with torch.no_grad():
            fuse_children(deployed.model)
        deployed.deployed = True
        channels_last(deployed)
        return deployed.requires_grad_(False)

    def info(self, imgsz: int = 640) -> dict[str, float]:
        """Return sizes of this model and of its deployed form; GFLOPs are 2 x MACs at imgsz^2 px.

        - `layers`: number of modules; all activations of a kind count as one, as in the 214 layers
          of YOLOv5.
        - `parameters`, `gflops`: of this form.
        - `fused_parameters`: as published tables count: of the deployed model, plus the implicit
          vectors that the official fuse leaves in place.
        - `deployed_parameters`, `gflops_fused`: of the deployed model.
        - `gflops_published`: this form with 4 MACs per batch norm element, as counters based on
          `thop` print. For display only.
        - `macs`: of the deployed model; speed-ups are ratios of `macs`.
        """
        deployed = self.fuse()
        (macs, norm_elements), deployed_macs = (
            count_operations(self, imgsz),
            count_macs(deployed, imgsz),
        )
        implicit = sum(
            m.implicit.numel() for m in self.modules() if isinstance(m, ImplicitA | ImplicitM)
        )
        parameters = count_parameters(deployed)
        return {
            "layers": self._count_layers(),
            "parameters": count_parameters(self),
            "gflops": 2 * macs / 1e9,
            "fused_parameters": parameters + implicit,
            "deployed_parameters": parameters,
            "gflops_fused": 2 * deployed_macs / 1e9,
            "gflops_published": 2 * (macs + 4 * norm_elements) / 1e9,
            "macs": deployed_macs,
        }

    def summary(self, imgsz: int = 640) -> str:
        """Return a line as `Model summary: 214 layers, 7235389 parameters, 16.4 GFLOPs`."""
        gflops = 2 * count_macs(self, imgsz) / 1e9
        return (
            f"Model summary: {self._count_layers()} layers, {count_parameters(self)} parameters,"
            f" {gflops:.1f} GFLOPs"
        )

    def _count_layers(self) -> int:
        kinds = {name for name in ACTIVATIONS if name != "Identity"}
        modules = list(self.modules())
        activations = [m for m in modules if type(m).__name__ in kinds]
        return len(modules) - len(activations) + len({repr(m) for m in activations})


def fuse_children(module: nn.Module) -> None:
    """Replace every descendant that has a `fuse()` by its fused form, the innermost first.

    The module must be in eval mode.
    """
    for name, child in module.named_children():
        fuse_children(child)
        fuse = getattr(child, "fuse", None)
        if callable(fuse):
            setattr(module, name, cast(nn.Module, fuse()).eval())


def build_model(
    cfg: Mapping[str, Any] | Path | str, nc: int | None = None, anchors: Any = None
) -> Model:
    """Build a new model from a bare name (`yolov5n`), a path, or a parsed YAML.

    `nc` and `anchors` replace those of the YAML.
    """
    if isinstance(cfg, Mapping):
        where, content = "model", dict(cfg)
    else:
        path = resolve(cfg, "model")
        where, content = str(path), load_yaml(path)
    changes = {"nc": nc, "anchors": anchors}
    return Model(content | {k: v for k, v in changes.items() if v is not None}, where)
