"""Pictures on a page: charts that are made when there is something to show, and changed in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nicegui import ui

from services.dashboard.charts import Curve, Series, curve_options
from services.dashboard.frame import Text, box

Options = Mapping[str, Any]


class Picture:
    """One chart with its title. Its place on the page is kept while there is nothing to show."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._place = box("figure", "picture", aria_label=title)
        self._place.set_visibility(False)
        self._chart: ui.echart | None = None

    @property
    def shown(self) -> bool:
        """Whether there was anything to show."""
        return self._chart is not None

    def show(self, options: Options) -> None:
        """Show this."""
        if self._chart is None:
            self._place.set_visibility(True)
            with self._place:
                Text("h3", self._title)
                self._chart = ui.echart(dict(options), renderer="svg").classes("chart")
        elif self._chart.options != options:
            self._chart.options.clear()
            self._chart.options.update(options)
            self._chart.update()


class Gallery:
    """Curves side by side; one that has no points yet is left out."""

    def __init__(
        self, curves: tuple[Curve, ...], further: Mapping[str, Callable[[Series], Options | None]] | None = None
    ) -> None:
        with box("div", "gallery"):
            self._curves = {curve: Picture(curve.title) for curve in curves}
            self._further = [(Picture(title), make) for title, make in (further or {}).items()]
        self._nothing = Text("p", "No points yet.", "quiet")

    def show(self, series: Series) -> None:
        """Show what there is."""
        for curve, picture in self._curves.items():
            if curve.metrics(series):
                picture.show(curve_options(curve, series))
        for picture, make in self._further:
            options = make(series)
            if options is not None:
                picture.show(options)
        pictures = [*self._curves.values(), *(picture for picture, _ in self._further)]
        self._nothing.set_visibility(not any(picture.shown for picture in pictures))
