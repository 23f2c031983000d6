"""List the flow families that the exporter can read, in one table."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from flowedge.export.families import cflow, csflow, fastflow, msflow, uflow
from flowedge.export.families.family import LICENCES, FlowFamily
from flowedge.export.reference.cflow import CflowReference
from flowedge.export.reference.csflow import CsflowReference
from flowedge.export.reference.fastflow import FastflowReference
from flowedge.export.reference.msflow import MsflowReference
from flowedge.export.reference.uflow import UflowReference
from flowedge.manifest import Family

FAMILIES: Final[Mapping[Family, FlowFamily]] = MappingProxyType(
    {
        family.name: family
        for family in (
            FlowFamily(name="cflow", flow_model=cflow.flow_model, reference_network=CflowReference),
            FlowFamily(name="csflow", flow_model=csflow.flow_model, reference_network=CsflowReference),
            FlowFamily(name="fastflow", flow_model=fastflow.flow_model, reference_network=FastflowReference),
            FlowFamily(name="uflow", flow_model=uflow.flow_model, reference_network=UflowReference),
            FlowFamily(name="msflow", flow_model=msflow.flow_model, reference_network=MsflowReference),
        )
    }
)

__all__ = ["FAMILIES", "LICENCES", "FlowFamily"]
