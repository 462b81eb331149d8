"""From `--cfg` and `--weights` to a model that fits the data: the preparations of train.py."""

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

MOST_ITEMS = 0.8
"""Share of the items that fits where `--cfg` is a variant of the model of `--weights`."""


def prepare_hyp(opt: TrainOptions) -> Hyp:
    """Return the hyp file's values, with those replaced that the command line gives.

    Warns of values that have no effect.
    """
    hyp = load_hyp(opt.hyp)
    for name in ("copy_paste", "paste_in"):
        value = getattr(hyp, name)
        if value:
            LOGGER.warning(
                f"{opt.hyp}: {name}: {value:g} has no effect: it needs outlines, labels of boxes"
                " have none"
            )
    if opt.loss:
        hyp = hyp.replace(loss=opt.loss)
    if opt.label_smoothing > 0:
        hyp = hyp.replace(label_smoothing=opt.label_smoothing)
    return hyp


def class_names(data_names: Sequence[str], single_cls: bool) -> list[str]:
    """Return the class names of a training: the data's, or one for all with `--single-cls`."""
    return ["object"] if single_cls and len(data_names) > 1 else list(data_names)


def prepare_model(opt: TrainOptions, hyp: Hyp, names: list[str]) -> Model:
    """Return the model to train, named after the classes.

    - `--cfg` alone: a new model.
    - `--cfg` and `--weights`: a new model with the weights that fit by name and shape; its anchors
      are new.
    - `--weights` alone: structure (a pruned model stays pruned), weights and anchors of that model.
      Where the number of classes differs, the layers that depend on the number start anew.
    - `--reinit`: structure and anchors of `--weights`, new weights.
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
            _warn_of_loss(opt, source, copied, total)
        else:
            model = source if source.nc == len(names) else with_classes(source, len(names))
            copied, total = transfer_weights(model, source.state_dict(), exclude=())
            model.head.refresh()
        if opt.reinit:
            LOGGER.info(f"The structure is that of {opt.weights}, the weights are new")
        else:
            LOGGER.info(f"Transferred {copied}/{total} items from {opt.weights}")
    model.names = names
    return model


def _warn_of_loss(opt: TrainOptions, source: Model, copied: int, total: int) -> None:
    """Warn where `--cfg` undoes a pruning, or has little in common with `--weights`.

    Args:
        opt: Options with both of them.
        source: Model of the weights.
        copied: Number of entries of the new model that the weights fill.
        total: Number of all its entries.
    """
    if widths_of(build_model(source.cfg)) != widths_of(source):
        LOGGER.warning(
            f"WARNING: {opt.weights} is pruned, and --cfg {opt.cfg} builds the full model again,"
            f" with {copied} of {total} items of the weights; leave out --cfg to train the pruned"
            " model (--reinit for its structure with new weights)"
        )
    elif copied < MOST_ITEMS * total:
        LOGGER.warning(
            f"WARNING: only {copied} of {total} items of {opt.weights} fit --cfg {opt.cfg} by name"
            " and shape; all others start anew"
        )


def with_classes(source: Model, nc: int) -> Model:
    """Return a model of the same structure, pruned or not, for another number of classes.

    All weights are new.
    """
    model = build_model(source.cfg, nc=nc)
    built, fresh = widths_of(build_model(source.cfg)), widths_of(model)
    by_classes = [name for name in fresh if built.get(name) != fresh[name]]
    structure: Widths = {}
    for name, widths in widths_of(source).items():
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
    """Return a model of the same structure, pruned or not, and the same anchors, with new weights.

    A cut layer takes the first weights of those that the uncut layer would start with. So a layer
    that starts at values of its own (zeros, ones) starts at them here too. The scale of the uncut,
    wider layer is a little smaller; batch norms make up for that.
    """
    model, uncut = copy.deepcopy(source), build_model(source.cfg).state_dict()
    weights = {}
    for name, old in source.state_dict().items():
        corner = tuple(slice(size) for size in old.shape)
        weights[name] = uncut[name][corner]
    model.load_state_dict(weights)
    model.head.load_state(source.head.state())
    return model


def freeze(model: Model, rows: Sequence[int]) -> None:
    """Freeze the parameters of rows of the model; batch-norm statistics still follow the data.

    Args:
        model: Model to change.
        rows: One number n (`--freeze 10`) for the first n rows; several (`--freeze 0 1 2`) for
            these rows.

    Raises:
        UserError: The model has no such row, or no row is left to train.
    """
    count = len(model.model)
    chosen = range(rows[0]) if len(rows) == 1 else rows
    wrong = rows[0] > count if len(rows) == 1 else any(row >= count for row in rows)
    if wrong or any(row < 0 for row in rows):
        raise UserError(
            f"--freeze {' '.join(map(str, rows))}: the model has the rows 0 to {count - 1}"
        )
    for row in chosen:
        model.model[row].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(
            f"--freeze {' '.join(map(str, rows))}: freezes the whole model, nothing would be"
            f" trained; the model has the rows 0 to {count - 1}"
        )
    if rows:
        LOGGER.info(f"Frozen rows: {', '.join(map(str, chosen)) or 'none'}")


def _anchor_number(hyp: Hyp) -> int | None:
    return None if hyp.anchors is None else round(hyp.anchors)


def _merge(built: Any, fresh: Any, wanted: Any) -> Any:
    """Merge the widths of a pruned model with those for another number of classes.

    Args:
        built: Widths of the uncut model for the old number of classes: dicts, lists and numbers.
        fresh: Widths of the uncut model for the new number of classes.
        wanted: Widths of the pruned model for the old number of classes.

    Returns:
        `fresh` where the number of classes changed a width, `wanted` everywhere else.
    """
    if isinstance(wanted, dict):
        return {key: _merge(built[key], fresh[key], wanted[key]) for key in wanted}
    if isinstance(wanted, list) and len(built) == len(wanted):
        return [_merge(*values) for values in zip(built, fresh, wanted, strict=True)]
    return wanted if built == fresh else fresh
