"""Live figures: one front end that asks the kernel in JupyterLab and ONNX Runtime on the static page.

A figure is put together from controls, marks and one function of torch; see :class:`LiveFigure`.
"""

from companion.live.figure import LiveFigure
from companion.live.parts import (
    Area,
    Arrows,
    Bars,
    Choice,
    Heat,
    Images,
    Line,
    Paint,
    Panel,
    Point,
    Points,
    Readout,
    Repeat,
    Segments,
    Slider,
    Toggle,
    Trails,
)

__all__ = [
    "Area",
    "Arrows",
    "Bars",
    "Choice",
    "Heat",
    "Images",
    "Line",
    "LiveFigure",
    "Paint",
    "Panel",
    "Point",
    "Points",
    "Readout",
    "Repeat",
    "Segments",
    "Slider",
    "Toggle",
    "Trails",
]
