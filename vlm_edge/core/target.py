"""A target: the engine and the hardware limits that a variant is compiled for and measured on."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, Strict

from vlm_edge.checked import CheckedModel

KIT_ASKED = "the target asks for a build kit, whose engine is built and measured on the device"


class Target(CheckedModel):
    """A row of ``recipes/targets/``.

    ``engine`` is a backend's name, ``isa`` the instruction set that INT8 graphs are lowered for: one of the backend's,
    or ``auto``, which reads the host's flags and becomes the backend's one where it has no more.
    ``compute_capabilities`` are the GPUs that plans are built for where that is not done on the device (tensorrt-rtx).
    """

    name: str = Field(min_length=1, max_length=200)
    description: str = ""
    engine: str = Field(min_length=1, max_length=200)
    threads: int = Field(default=2, ge=1, le=1024, description="intra-op threads of each component's engine")
    isa: str = Field(default="auto", min_length=1, max_length=200)
    compute_capabilities: Annotated[tuple[str, ...], Strict(False)] = Field(
        default=(), max_length=16, description="of the GPUs that plans are built for, such as 8.6 (engine tensorrt-rtx)"
    )
    kit: bool = Field(default=False, description="write a build kit for the device, even where this host could build")
    memory_mb: int | None = Field(default=None, ge=1, le=2**30, description="RAM of the device, in MiB: a bound")
    price_per_hour: float | None = Field(default=None, gt=0, le=1e9, description="of the machine, in any currency")

    @property
    def decides(self) -> dict[str, Any]:
        """The settings that decide an engine and its times, as JSON: all of the target that is part of any key."""
        named = {name for name in ("compute_capabilities", "kit") if getattr(self, name)}
        return self.model_dump(mode="json", include={"engine", "threads", "isa", *named})
