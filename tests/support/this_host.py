"""The INT8 form that this host's onnxruntime computes exactly, for tests that run integer products.

x86 without VNNI adds pairs of 8-bit products in 16 bits, which saturates unless weights have 7 bits.
"""

from __future__ import annotations

from vlm_edge.backends.lowering import host_isa, lowering_of

FORM = lowering_of("onnxruntime", host_isa())
WEIGHT_BITS = FORM.weight_bits
