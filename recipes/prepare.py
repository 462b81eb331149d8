"""From `--cfg` and `--weights` to a model that fits the data: what train.py does
before it trains.
"""

import copy
from collections.abc import Sequence
from typing import Any, cast

from torch import nn

from models import Model, build_model
from models.checkpoint import load_model, transfer_weights
from models.widths import Widths, set_widths, widths_of
from utils.config import Hyp, load_hyp
from utils.errors import UserError
from utils.log import LOGGER
from utils.options.train import TrainOptions


def prepare_hyp(opt: TrainOptions) -> Hyp:
    """The hyp file with what the command line replaces; says what of it has no effect."""
    hyp = load_hyp(opt.hyp)
    for name in ("copy_paste", "paste_in"):
        if value := getattr(hyp, name):
            LOGGER.warning(
                f"{opt.hyp}: {name}: {value:g} has no effect: it needs outlines, labels of boxes"
                " have none"
            )
    if opt.loss:
        hyp = hyp.replace(loss=opt.loss)
    return hyp.replace(label_smoothing=opt.label_smoothing) if opt.label_smoothing > 0 else hyp


def class_names(data_names: Sequence[str], single_cls: bool) -> list[str]:
    """The names a model is trained with: the data's, or one for all with `--single-cls`."""
    return ["object"] if single_cls and len(data_names) > 1 else list(data_names)


def prepare_model(opt: TrainOptions, hyp: Hyp, names: list[str]) -> Model:
    """The model to train.

    `--cfg` alone: new weights. `--cfg` and `--weights`: new, with the weights that fit by name and
    shape, anchors not among them. `--weights` alone: its own structure (pruned ones keep theirs)
    and anchors; only where the number of classes differs do the layers that depend on it start
    anew. `--reinit` takes the structure and the anchors of `--weights` and nothing else.
    """
    if not opt.weights:
        model = build_model(opt.cfg, nc=len(names), anchors=_anchor_number(hyp))
    else:
        source = load_model(opt.weights)
        if opt.reinit:
            source = with_new_weights(source)
        if opt.cfg:
            model = build_model(opt.cfg, nc=len(names), anchors=_anchor_number(hyp))
            copied, total = transfer_weights(model, source.state_dict())
        else:
            model = source if source.nc == len(names) else with_classes(source, len(names))
            copied, total = transfer_weights(model, source.state_dict(), exclude=())
            model.head.set_anchors(model.head.anchors_px)
        if opt.reinit:
            LOGGER.info(f"The structure is that of {opt.weights}, the weights are new")
        else:
            LOGGER.info(f"Transferred {copied}/{total} items from {opt.weights}")
    model.names = names
    return model


def with_classes(source: Model, nc: int) -> Model:
    """A model of the same structure, pruned or not, for another number of classes.

    Weights are new.
    """
    model = build_model(source.cfg, nc=nc)
    built, fresh, wanted = widths_of(build_model(source.cfg)), widths_of(model), widths_of(source)
    by_classes = [name for name in fresh if built.get(name) != fresh[name]]
    structure: Widths = {}
    for name, widths in wanted.items():
        merged = _merge(built[name], fresh[name], widths)
        if merged != fresh[name]:
            structure[name] = merged
    set_widths(model, structure)
    for name in by_classes:
        layer = model.get_submodule(name)
        if isinstance(layer, nn.Conv2d | nn.Linear):
            cast(Any, layer).reset_parameters()
    model.head.initialise_bias()
    return model


def with_new_weights(source: Model) -> Model:
    """A model of the same structure, pruned or not, and the same anchors, as if it had never been
    trained.

    A cut layer takes its share of the weights that the uncut one would start with, so that whatever
    starts at a value of its own (zeros, ones) does so here too; batch norms make up for the wider
    layer's smaller scale.
    """
    model, drawn = copy.deepcopy(source), build_model(source.cfg).state_dict()
    model.load_state_dict(
        {
            name: drawn[name][tuple(map(slice, old.shape))]
            for name, old in source.state_dict().items()
        }
    )
    model.head.set_anchors(source.head.anchors_px)
    return model


def freeze(model: Model, rows: Sequence[int]) -> None:
    """`--freeze 10`: the first ten rows learn nothing; `--freeze 0 1 2`: these.

    Batch-norm statistics still follow the data.
    """
    chosen = range(rows[0]) if len(rows) == 1 else rows
    last = len(model.model) - 1
    if any(not 0 <= row <= last for row in chosen):
        raise UserError(f"--freeze {' '.join(map(str, rows))}: the model has the rows 0 to {last}")
    for row in chosen:
        model.model[row].requires_grad_(False)
    if rows:
        LOGGER.info(f"Frozen rows: {', '.join(map(str, chosen))}")


def _anchor_number(hyp: Hyp) -> int | None:
    return None if hyp.anchors is None else round(hyp.anchors)


def _merge(built: Any, fresh: Any, wanted: Any) -> Any:
    """What the classes changed from `built` to `fresh`, everything else as in `wanted` (pruned);
    nested dicts and lists alike.
    """
    if isinstance(wanted, dict):
        return {key: _merge(built[key], fresh[key], wanted[key]) for key in wanted}
    if isinstance(wanted, list) and len(built) == len(wanted):
        return [_merge(*values) for values in zip(built, fresh, wanted, strict=True)]
    return wanted if built == fresh else fresh
