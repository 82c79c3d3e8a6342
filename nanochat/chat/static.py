"""The chat page's files, served as they lie, under a policy that lets nothing else run."""

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import Response

PAGE = Path(__file__).with_name("page")
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)


def add_page(app: FastAPI) -> None:
    """Adds GET / (index.html) and one address for each file beside it."""
    headers = {"content-security-policy": POLICY, "cache-control": "no-cache"}
    for path in sorted(file for file in PAGE.iterdir() if file.suffix in TYPES):

        async def serve(
            _, text: bytes = path.read_bytes(), kind: str = TYPES[path.suffix]
        ) -> Response:
            return Response(text, media_type=kind, headers=headers)

        address = "/" if path.name == "index.html" else f"/{path.name}"
        app.add_route(address, serve, include_in_schema=False)
