"""What the server answers at all. Gradio has routes for uploads, files and more; this page needs none of them."""

from __future__ import annotations

from typing import Any

# What the page asks for, as it is. Everything else is not there: nothing is uploaded, and no file is fetched by a path.
PAGES = (
    "/", "/config", "/theme.css", "/favicon.ico", "/robots.txt", "/manifest.json",
    "/gradio_api/startup-events", "/gradio_api/app_id", "/gradio_api/theme.css", "/gradio_api/queue/join",
    "/gradio_api/queue/data", "/gradio_api/run/predict", "/gradio_api/cancel", "/gradio_api/reset", "/gradio_api/info",
)  # fmt: skip
BELOW = ("/assets/", "/static/", "/svelte/", "/gradio_api/heartbeat/")
MOST_BYTES = 4_000_000  # of a request: a picture as text, and the settings
# No request leaves for another machine, whatever Gradio's page asks for: fonts, scripts, pictures. It compiles its
# templates in the browser, hence 'unsafe-eval'.
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; font-src 'self' data:; style-src 'self' 'unsafe-inline'; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval'; form-action 'none'; base-uri 'self'; frame-ancestors 'none'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


class Guard:
    """An ASGI application before another: answers only what the page needs, refuses what is too large."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        refused = refusal(scope["path"], scope["method"], dict(scope["headers"]))
        if refused:
            await answer(send, *refused)
            return

        async def send_with_policy(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
            await send(message)

        await self.app(scope, receive, send_with_policy)


def refusal(path: str, method: str, headers: dict[bytes, bytes]) -> tuple[int, bytes] | None:
    """Why a request is not answered: status and words; None if it is."""
    if path not in PAGES and (not path.startswith(BELOW) or ".." in path):
        return 404, b"There is no such page."
    if method not in ("GET", "HEAD", "POST"):
        return 405, b"That is not done here."
    length = headers.get(b"content-length", b"" if method == "POST" else b"0")
    if not length.isdigit():  # sent in pieces, of which nobody knows how many
        return 411, b"Say how long the request is."
    if int(length) > MOST_BYTES:
        return 413, b"That is too large."
    return None


async def answer(send: Any, status: int, words: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(words)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": words})
