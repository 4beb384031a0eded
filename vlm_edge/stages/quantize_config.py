"""The settings of quantization, and the components and layers that its schemes and patterns stand for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from pydantic import Field, Strict

from vlm_edge.backends import backend, backends
from vlm_edge.core.stage import MetricSamples, Named, StageConfig, TaskMetric, TaskSpec, fault_of
from vlm_edge.errors import VlmEdgeError
from vlm_edge.names import near

if TYPE_CHECKING:
    from vlm_edge.processing.manifest import PipelineManifest

Scheme = Literal["int8", "int8-dynamic", "int8-weights", "int4-weights", "float16-weights", "none"]
EVERY = "*"


class QuantizeConfig(StageConfig):
    """``quantize: {components: {"*": int8}}``.

    ``int8``: calibrated, integer arithmetic. ``int8-dynamic``: integer arithmetic with ranges taken as it runs
    (onnxruntime). ``int8-weights``: int8 on disk, float arithmetic; on onnxruntime a decoder's linear layers multiply
    blocks of int8. ``int4-weights``: linear layers in blocks of 4 bits, other weights int8 (tensorrt: float).
    ``float16-weights``: half the bytes on disk, float32 arithmetic as fast as before. ``none``: the component stays as
    it was exported.
    """

    components: dict[str, Scheme] = Field(default={EVERY: "int8"}, description="scheme by component; '*': all others")
    samples: int = Field(default=256, ge=2, le=100_000, description="calibration samples, of which 1 in 8 is held out")
    ranges: Literal["auto", "minmax", "percentile", "mse", "entropy"] = Field(
        default="auto",
        description="how int8 ranges are taken; auto: minmax, and mse for a component that minmax leaves too noisy",
    )
    percentile: float = Field(default=99.99, gt=50, le=100, description="of ranges: percentile, on either side")
    min_sqnr_db: float | None = Field(
        default=None,
        ge=0,
        le=200,
        description="noise bound of every int8 component's outputs: the fewest layers stay float until it is met",
    )
    keep_float: Annotated[tuple[str, ...], Strict(False)] = Field(
        default=(), description="layers that stay float: patterns of names as the report lists them, or COMPONENT/NAME"
    )
    max_drop_pt: float | None = Field(
        default=None,
        gt=0,
        le=100,
        description="bound on what the task's metric loses against float, to the far end of its 95% interval: "
        "the fewest layers stay float until it is met",
    )
    metric_images: int | None = Field(
        default=None,
        ge=2,
        le=10_000_000,
        description="images that max_drop_pt and sensitivity: task are measured on, of the train split (else "
        "calibration) and not calibrated on; null: enough to show half of max_drop_pt, or 256",
    )
    sensitivity: Literal["output", "task", "none"] = Field(
        default="output",
        description="rank layers by what each alone adds: output: noise; task: also what the task's metric loses, "
        "which takes an evaluation a layer",
    )


def metric_samples(config: QuantizeConfig, task: TaskSpec, metric: TaskMetric | None) -> MetricSamples | None:
    """The samples that the task's metric is measured on, or None where the config asks for none of it.

    Raises:
        VlmEdgeError: there are too few for ``max_drop_pt``, or nothing here can measure the metric.
    """
    if config.max_drop_pt is None and config.sensitivity != "task":
        return None
    if metric is None:
        raise VlmEdgeError(
            "quantize: nothing measures the task's metric, which max_drop_pt and sensitivity: task need",
            "call the stage through vlm_edge.api, or hand it a metric in its StageWork",
        )
    from vlm_edge.data import load_dataset

    calibrated = {sample.image for sample in load_dataset(task.data, "calibration", limit=config.samples).samples}
    return metric.samples(task, max_drop_pt=config.max_drop_pt, images=config.metric_images, without=calibrated)


def splits(_config: QuantizeConfig) -> tuple[Literal["calibration"], ...]:
    """The parts of the task's data that the stage reads, beside the metric's."""
    return ("calibration",)


def faults(config: QuantizeConfig, named: Named) -> list[tuple[str, str]]:
    """(setting, what is wrong) of what the engine does not have, and of a bound that the samples can't show."""
    engine = named.target.engine
    found = [
        (f"components.{name}", f"{scheme} is for {_engines_with(scheme)}; the target's engine is {engine}")
        for name, scheme in config.components.items()
        if scheme not in schemes_of(engine)
    ]
    dtype = getattr(named.before.get("export"), "dtype", "float32")
    if dtype not in backend(engine).int8_dtypes and set(config.components.values()) != {"none"}:
        found.append(("components", half_problem(dtype, engine)))
    try:
        metric_samples(config, named.task, named.metric)
    except VlmEdgeError as error:
        found.append(fault_of(error, "quantize", config))
    return found


def half_problem(dtype: str, engine: str) -> str:
    """Tells that the engine's quantized layers have no place in a 16-bit graph."""
    return f"the graphs are {dtype}; for {engine} float32 ones are quantized: export with dtype: float32"


def resolve_schemes(config: QuantizeConfig, manifest: PipelineManifest, engine: str) -> dict[str, Scheme]:
    """The scheme of every component of the manifest.

    Raises:
        VlmEdgeError: a component is unknown or has no scheme, the engine has no such scheme, or the graph is a 16-bit
            one that is not quantized for it.
    """
    known = list(manifest.components)
    for name in config.components:
        if name != EVERY and name not in known:
            raise VlmEdgeError(f"quantize.components: {name!r} is no component of this model", near(name, known))
    schemes: dict[str, Scheme] = {}
    for name in known:
        scheme = config.components.get(name, config.components.get(EVERY))
        if scheme is None:
            raise VlmEdgeError(
                f"quantize.components: no scheme for {name!r}", f"add {name!r}, or '{EVERY}' for all others"
            )
        if scheme not in schemes_of(engine):
            raise VlmEdgeError(
                f"quantize.components.{name}: {scheme} is for {_engines_with(scheme)}; the target's engine is {engine}",
                f"schemes for {engine}: {', '.join(schemes_of(engine))}",
            )
        if scheme != "none" and manifest.precision.get(name) in {"float16", "bfloat16"}.difference(
            backend(engine).int8_dtypes
        ):
            raise VlmEdgeError(f"quantize.components.{name}: {half_problem(manifest.precision[name], engine)}")
        schemes[name] = scheme
    return schemes


def schemes_of(engine: str) -> list[Scheme]:
    """The schemes that an engine has, ``none`` among them."""
    return [scheme for scheme in get_args(Scheme) if scheme in {*backend(engine).schemes, "none"}]


def _engines_with(scheme: Scheme) -> str:
    return " and ".join(spec.name for spec in backends().values() if scheme in spec.schemes)


def resolve_kept(patterns: Iterable[str], layers: Mapping[str, Mapping[str, str]]) -> dict[str, frozenset[str]]:
    """The nodes that stay float, by component.

    Args:
        layers: component -> node name -> the layer's name.

    Raises:
        VlmEdgeError: a pattern matches no layer.
    """
    kept: dict[str, set[str]] = {component: set() for component in layers}
    for pattern in patterns:
        found = [
            (component, node)
            for component, names in layers.items()
            for node, name in names.items()
            if fnmatchcase(name, pattern) or fnmatchcase(f"{component}/{name}", pattern)
        ]
        if not found:
            known = sorted({name for names in layers.values() for name in names.values()})
            raise VlmEdgeError(f"quantize.keep_float: {pattern!r} matches no layer", near(pattern, known))
        for component, node in found:
            kept[component].add(node)
    return {component: frozenset(nodes) for component, nodes in kept.items()}
