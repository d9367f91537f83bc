"""Which address shows what."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from drfuse.errors import InputError, describe_os_error
from drfuse.escapes import csv_of, printable
from drfuse.explore.cohort_page import CohortPage
from drfuse.explore.explanations import Explanations
from drfuse.explore.one_stay import HEIGHT, WIDTH, charts, labels, radiograph
from drfuse.explore.opened import Opened
from drfuse.explore.results import Results
from drfuse.explore.stays import MOST_ROWS, Stays, View

_PAGES = {"cohort": ("/", "Cohort"), "stays": ("/stays", "Stays"), "results": ("/results", "Results")}
_REPORT = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"}


def make_app(opened: Opened) -> Any:
    """Return the pages on a cohort and its runs as an ASGI application."""
    pages = _Pages(opened)
    of_one_cohort = opened.answered_from_what_was_opened
    routes = [
        Route("/", of_one_cohort(pages.cohort)),
        Route("/stays", of_one_cohort(pages.stays)),
        Route("/stays.json", of_one_cohort(pages.rows)),
        Route("/stays.csv", of_one_cohort(pages.as_csv)),
        Route("/stays/{stay_id}", of_one_cohort(pages.one_stay)),
        Route("/stays/{stay_id}/radiograph.png", of_one_cohort(pages.radiograph)),
        Route("/stays/{stay_id}/explanation", of_one_cohort(pages.explanation), methods=["POST"]),
        Route("/results", of_one_cohort(pages.results)),
        Route("/results/{name}", pages.file),
        Mount("/static", StaticFiles(packages=[("drfuse.explore", "static")])),
    ]

    @asynccontextmanager
    async def until_the_end(_app: Any) -> AsyncIterator[None]:
        yield
        pages.close()

    return Starlette(
        routes=routes,
        exception_handlers=dict.fromkeys((InputError, OSError), pages.problem),
        lifespan=until_the_end,
    )


class _Pages:
    """Answers requests. Starlette calls each method in a thread of its own."""

    def __init__(self, opened: Opened) -> None:
        self._opened, self._stays, self._results = opened, Stays(opened), Results(opened)
        self._explanations = Explanations(opened)
        self._cohort: CohortPage | None = None
        self._templates = Environment(
            loader=PackageLoader("drfuse.explore"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters["number"] = _number

    def cohort(self, request: Any) -> Any:
        if self._cohort is None:
            self._cohort = CohortPage.of(self._opened.cohort)
        manifest = self._opened.cohort.manifest
        return self._page("cohort", request, page=self._cohort, releases=manifest.summary.releases)

    def stays(self, request: Any) -> Any:
        view = View.of(request.query_params)
        predicted = self._opened.predicted(view.run)
        self._stays.rows(view)  # what cannot be shown is said here, not by the request for rows
        return self._page(
            "stays",
            request,
            view=view,
            columns=self._stays.columns,
            labels=predicted.labels,
            has_run=bool(predicted.name),
        )

    def rows(self, request: Any) -> Any:
        view = View.of(request.query_params)
        start = _whole(request.query_params, "start")
        count = min(_whole(request.query_params, "count"), MOST_ROWS)
        table = self._stays.table(view, start, count)
        rows = [list(map(_plain, row)) for row in table.iter_rows()]
        return JSONResponse({"total": len(self._stays.rows(view)), "columns": table.columns, "rows": rows})

    def as_csv(self, request: Any) -> Any:
        text = csv_of(self._stays.table(View.of(request.query_params)))
        return Response(text, media_type="text/csv", headers=_attachment("stays.csv"))

    def one_stay(self, request: Any) -> Any:
        view, stay_id = View.of(request.query_params), _whole(request.path_params, "stay_id")
        row = self._opened.cohort.row_of(stay_id)
        before, after, place, total = self._stays.around(view, row)
        predicted = self._opened.predicted(view.run)
        return self._page(
            "one_stay",
            request,
            view=view,
            stay=self._opened.cohort.stays.row(row, named=True),
            charts=charts(self._opened.cohort, row),
            labels=labels(predicted, row),
            predicted=predicted,
            before=before,
            after=after,
            place=place,
            total=total,
            n_hours=self._opened.cohort.ehr.shape[1],
            width=WIDTH,
            height=HEIGHT,
        )

    def radiograph(self, request: Any) -> Any:
        cohort = self._opened.cohort
        image = radiograph(cohort, cohort.row_of(_whole(request.path_params, "stay_id")))
        return Response(status_code=404) if image is None else Response(image, media_type="image/png")

    def explanation(self, request: Any) -> Any:
        run = self._opened.predicted(request.query_params.get("run", "")).name
        stay_id, label = _whole(request.path_params, "stay_id"), request.query_params.get("label", "")
        return JSONResponse(self._explanations.state(run, stay_id, label))

    def results(self, request: Any) -> Any:
        view = View.of(request.query_params)
        found = self._results
        return self._page(
            "results",
            request,
            view=view,
            tables=list(found.tables(view.run)),
            figures=found.figures(),
            reports=found.reports(),
        )

    def file(self, request: Any) -> Any:
        path = self._results.file(request.path_params["name"])
        return Response(status_code=404) if path is None else FileResponse(path, headers=_REPORT)

    def close(self) -> None:
        self._explanations.close()

    def problem(self, request: Any, error: Exception) -> Any:
        """Show what cannot be shown, and why."""
        said = describe_os_error(error)
        if request.url.path.endswith((".json", "/explanation")):
            return JSONResponse({"problem": said}, status_code=400)
        return self._page("problem", request, status=400, problem=said)

    def _page(self, name: str, request: Any, status: int = 200, **shown: Any) -> Any:
        html = self._templates.get_template(f"{name}.html").render(
            current=name,
            pages=_PAGES,
            cohort=self._opened.cohort.folder.resolve().name,
            n_stays=len(self._opened.cohort),
            runs=list(self._opened.runs),
            run=request.query_params.get("run") or next(iter(self._opened.runs), ""),
            **shown,
        )
        return HTMLResponse(printable(html), status_code=status)


def _whole(given: Mapping[str, str], name: str) -> int:
    text = given.get(name, "0")
    if not text.isdecimal() or len(text) > 18:
        raise InputError(f"{name} is {text[:20]!r}; expected a whole number of at most 18 digits")
    return int(text)


def _plain(value: Any) -> Any:
    """Return a value of a table as JSON has it, a number of a few digits."""
    return round(value, 4) if isinstance(value, float) else value


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _attachment(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}"'}
