"""What people see."""

from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

router = APIRouter(include_in_schema=False)


@router.get("/", response_class=HTMLResponse)
async def index() -> HTMLResponse:
    """The web page."""
    return HTMLResponse(files("app").joinpath("web", "index.html").read_text("utf-8"))
