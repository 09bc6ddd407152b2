"""Security headers by path: what the API answers may do nothing in a browser; the dashboard's pages may do what they come with."""

from __future__ import annotations

from collections.abc import Mapping

API_PATHS = ("/v1", "/healthz", "/readyz", "/metrics")
"""The API's part of the service; everything else is for people with a browser."""

_EVERYWHERE: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

_API: Mapping[str, str] = {
    **_EVERYWHERE,
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}

_PAGES: Mapping[str, str] = {
    **_EVERYWHERE,
    # with no-referrer a browser sends the forms of these very pages with `Origin: null`, which is refused
    "Referrer-Policy": "same-origin",
    # Nothing loads from, or talks to, another host. NiceGUI's pages carry their first script and styles inside them, and Vue compiles
    # its templates in the browser, hence 'unsafe-inline' and 'unsafe-eval'. 'self' covers the web socket too.
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'self'; "
        "form-action 'self'; frame-ancestors 'none'"
    ),
}


def is_api(path: str) -> bool:
    """Whether a path belongs to the API, also where it has no such route."""
    return any(path == prefix or path.startswith(f"{prefix}/") for prefix in API_PATHS)


def security_headers(path: str) -> Mapping[str, str]:
    """Headers of every answer under a path, where the route says nothing else."""
    return _API if is_api(path) else _PAGES
