"""The page on which one drops an image: its three files, all from this server."""

from importlib.resources import files

from fastapi import FastAPI, Response
from jinja2 import Environment, PackageLoader, StrictUndefined

from spg_pipe.deploy.serving.bounds import MILLION
from spg_pipe.deploy.serving.service import Service

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}


def add_page(app: FastAPI, service: Service) -> None:
    """Add the page of a model to an application."""
    bounds = service.bounds
    loader = PackageLoader("spg_pipe.deploy", "serving")
    templates = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    page = templates.get_template("page.html.jinja").render(
        name=service.name,
        megabytes=bounds.body_bytes // MILLION,
        megapixels=bounds.pixels // MILLION,
        explains=not service.waiting.how.predictor.alone,
    )
    folders = ("spg_pipe.report", "report"), ("spg_pipe.deploy.serving", "page")
    style, script = (
        "".join((files(room) / f"{name}.{kind}").read_text("utf-8") for room, name in folders)
        for kind in ("css", "js")
    )

    @app.get("/", include_in_schema=False)
    def index() -> Response:
        policy = {"Content-Security-Policy": _POLICY, "Referrer-Policy": "no-referrer"}
        return Response(page, media_type="text/html", headers=_HEADERS | policy)

    @app.get("/page.js", include_in_schema=False)
    def program() -> Response:
        return Response(script, media_type="text/javascript", headers=_HEADERS)

    @app.get("/page.css", include_in_schema=False)
    def style_sheet() -> Response:
        return Response(style, media_type="text/css", headers=_HEADERS)
