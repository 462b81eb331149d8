"""`val.py`: validate one checkpoint or exported file on one split and write the results."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.config import DataConfig, load_data
from data.loader import validation_loader
from deploy import Runtime, load_runtime
from utils.boxes import scale_boxes
from utils.detection_files import (
    coco_category_ids,
    coco_records,
    image_ids,
    output_names,
    yolo_text,
)
from utils.engine.device import device_name, select_device
from utils.errors import UserError
from utils.evaluator import EvalResult, evaluate, log_table, warn_of_settings
from utils.files import write_atomic
from utils.log import LOGGER, logging_to
from utils.options.val import ValOptions
from utils.plots.evaluation import batch_pictures, plot_evaluation
from utils.run_lock import run_lock
from utils.rundir import environment, make_run_dir, save_options

OnBatch = Callable[[Any, list[Tensor]], None]
"""Called with a batch and the detections of its images, (n, 6) each."""


def val(opt: ValOptions) -> EvalResult:
    """Validate `opt.weights` on a split of `opt.data`.

    The run folder gets `results.json`, the pictures, and the files that the options ask for.
    """
    opt.check()
    if opt.task == "speed":  # as YOLOv5: the thresholds of a user of the detector
        opt = replace(opt, conf_thres=0.25, iou_thres=0.45, noplots=True)
    device = select_device(opt.device)
    if opt.half and device.type == "cpu":
        LOGGER.warning("--half has no effect on the CPU: computing in float32")
    data = load_data(opt.data)
    model = load_runtime(opt.weights, device=device, imgsz=opt.imgsz)
    check_file(model, opt)
    names = shown_names(data, model, opt)
    opt = replace(opt, imgsz=model.imgsz[0])
    speed = opt.task == "speed"  # measured on squares, all of one size
    loader = validation_loader(
        data,
        "val" if speed else opt.task,
        rect=model.dynamic and not speed,
        imgsz=opt.imgsz,
        batch_size=opt.batch_size,
        workers=opt.workers,
        worker_timeout=opt.worker_timeout,
        stride=model.max_stride,
        single_cls=opt.single_cls,
        unlabelled=speed or opt.save_txt or opt.save_json,
    )

    folder = make_run_dir(opt.project, opt.name, opt.exist_ok)
    with run_lock(folder), logging_to(folder / "log.txt"):
        return validate_into(model, loader, names, data, opt, folder)


def check_file(model: Runtime, opt: ValOptions) -> None:
    """Refuse a file that the options cannot be done with; say how it is validated.

    Raises:
        UserError: `--augment` with a file without raw maps, or a file of a size that is no square.
    """
    if opt.augment and not model.gives_raw_maps:
        raise UserError(
            f"--augment: {opt.weights} gives boxes only, the views are put together from a"
            " checkpoint's raw maps; give the .pt, or leave --augment out"
        )
    height, width = model.imgsz
    if height != width:
        raise UserError(
            f"{opt.weights}: takes images of {height}x{width} px; val.py letterboxes into squares:"
            f" export it with --imgsz {max(height, width)} or --dynamic"
        )
    if not model.dynamic:
        LOGGER.info(
            f"{opt.weights}: a file of one size: images are letterboxed into {height}x{width} px;"
            " a .pt or --dynamic file is validated on rectangles, so its mAP differs a little"
        )
    if model.end2end:
        facts = model.metadata
        LOGGER.warning(
            f"{opt.weights}: its own NMS keeps {facts.max_det} boxes above {facts.conf_thres:g} an"
            f" image, one class each, overlap up to {facts.iou_thres:g}: mAP is of what is left"
        )


def validate_into(
    model: Runtime, loader: Any, names: list[str], data: DataConfig, opt: ValOptions, folder: Path
) -> EvalResult:
    """Evaluate a detector and write all results into the run folder.

    Args:
        model: Detector of any format.
        loader: Batches of the split.
        names: Class names by id.
        data: Data set; its number of classes counts.
        opt: Options of val.py with the final image size.
        folder: Existing run folder.
    """
    device = model.stride.device
    save_options(opt, folder / "opt.yaml", **environment(device))
    records: list[dict[str, Any]] = []
    with torch.no_grad():  # the first forward pass allocates: keep it out of the times
        model(torch.zeros(1, 3, opt.imgsz, opt.imgsz, device=device))
    if opt.task != "speed":
        warn_of_settings(loader.dataset.labels, opt.max_det, opt.conf_thres)
    result = evaluate(
        model,
        loader,
        names=names[: 1 if opt.single_cls else data.nc],
        conf_thres=opt.conf_thres,
        iou_thres=opt.iou_thres,
        max_det=opt.max_det,
        single_cls=opt.single_cls,
        augment=opt.augment,
        half=opt.half,
        coco=opt.task != "speed",
        on_batch=writers(opt, names, folder, records, list(map(str, loader.dataset.files))),
    )
    if opt.task != "speed":
        log_metrics(result, opt.verbose)
    times = ", ".join(f"{ms:.2f} ms {name}" for name, ms in result.speed.items())
    LOGGER.info(
        f"Speed: {times} per image at {opt.imgsz} px, batch {opt.batch_size}, {device_name(device)}"
    )
    if opt.save_json:
        write_atomic(folder / "predictions.json", json.dumps(records))
    if not opt.noplots:
        plot_evaluation(result, names[: result.confusion.nc], folder)
    text = json.dumps(summary(result, opt), indent=2, ensure_ascii=False)
    write_atomic(folder / "results.json", text)
    LOGGER.info(f"Results saved to {folder}")
    return result


def shown_names(data: DataConfig, model: Runtime, opt: ValOptions) -> list[str]:
    """Return the class names by id: the data's, then those that only the model has.

    Warns where model and data differ in their number of classes.
    """
    if opt.single_cls:
        return ["item"]
    if model.nc != data.nc:
        LOGGER.warning(
            f"WARNING: {opt.weights} has {model.nc} classes, {opt.data} has {data.nc}: class ids"
            f" are compared as they are, so id 0 is '{model.names[0]}' to the model and"
            f" '{data.names[0]}' to the labels; the metrics mean little"
        )
    return [*data.names, *model.names[data.nc :]]


def writers(
    opt: ValOptions,
    names: list[str],
    folder: Path,
    records: list[dict[str, Any]],
    files: list[str],
) -> OnBatch:
    """Return the function that writes the detections of each batch.

    Pictures, text files and COCO records, as far as the options ask for them.

    Args:
        opt: Options of val.py.
        names: Class names by id.
        folder: Run folder.
        records: List that the COCO records are added to.
        files: All images of the split.
    """
    draw = None if opt.noplots else batch_pictures(names, folder)
    labels = folder / "labels"
    if opt.save_txt:
        labels.mkdir(exist_ok=True)
    elif opt.save_conf:
        LOGGER.warning("--save-conf has no effect without --save-txt")
    category_ids = coco_category_ids(names)
    outputs = output_names(files) if opt.save_txt or opt.save_json else {}
    ids = image_ids(outputs)

    def write(batch: Any, detections: list[Tensor]) -> None:
        if draw is not None:
            draw(batch, detections)
        for boxes, file, shapes in zip(detections, batch.files, batch.shapes, strict=True):
            native = torch.cat((scale_boxes(boxes[:, :4], shapes), boxes[:, 4:]), 1)
            if opt.save_txt:
                text = yolo_text(native, *shapes[0], with_confidence=opt.save_conf)
                target = labels / f"{outputs[file]}.txt"
                write_atomic(target, text, sync=False)
            if opt.save_json:
                records.extend(coco_records(native, ids[file], category_ids))

    return write


def log_metrics(result: EvalResult, per_class: bool) -> None:
    """Log YOLOv5's table, then COCO's figures under their own name."""
    log_table(result, per_class)
    if result.coco is not None:
        figures = ", ".join(
            f"{name} {result.coco[name]:.3f}"
            for name in ("AP50", "AP", "AP75", "APs", "APm", "APl", "AR100")
        )
        LOGGER.info(
            "COCO metric (pycocotools protocol, 100 detections an image; -1: no such labels):"
            f" {figures}"
        )


def summary(result: EvalResult, opt: ValOptions) -> dict[str, Any]:
    """Return the content of `results.json`: plain numbers, dicts and lists."""
    total = {
        "P": result.mp,
        "R": result.mr,
        "mAP50": result.map50,
        "mAP50-95": result.map,
        "fitness": result.fitness,
    }
    columns = zip(
        result.names,
        result.labels,
        result.p,
        result.r,
        result.ap[:, 0],
        result.ap.mean(1),
        strict=True,
    )
    return {
        "weights": opt.weights,
        "data": opt.data,
        "task": opt.task,
        "imgsz": opt.imgsz,
        "batch_size": opt.batch_size,
        "images": result.seen,
        "instances": result.instances,
        "metrics": None if opt.task == "speed" else total,
        "coco": result.coco,
        "per_class": [
            {
                "class": name,
                "instances": int(count),
                "P": float(precision),
                "R": float(recall),
                "mAP50": float(ap50),
                "mAP50-95": float(ap),
            }
            for name, count, precision, recall, ap50, ap in columns
        ],
        "speed_ms": result.speed,
    }
