"""The families: reading the table tells all there is."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from flowedge.export.families import cflow
from flowedge.export.families.family import LICENCES, FlowFamily
from flowedge.export.reference.cflow import CflowReference
from flowedge.manifest import Family

FAMILIES: Final[Mapping[Family, FlowFamily]] = MappingProxyType(
    {
        family.name: family
        for family in (FlowFamily(name="cflow", flow_model=cflow.flow_model, reference=CflowReference),)
    }
)

__all__ = ["FAMILIES", "LICENCES", "FlowFamily"]
