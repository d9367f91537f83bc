"""`drfuse explore`: pages on a cohort and its runs, for the browser of whoever starts it."""

import socket
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from drfuse.arguments import check_arguments
from drfuse.errors import InputError
from drfuse.imports import import_class
from drfuse.logs import Terminal

_ADDRESS = "127.0.0.1"


@check_arguments
def explore(what: Path, cohort: Path | None = None, port: int = 0, model: str | None = None) -> None:
    """Show a cohort, its stays and what runs predict of them in the browser, until Ctrl-C.

    Only this machine can reach the pages, and only the browser that opened the printed address first.
    docs/explore.md says what they show, and how to see them from another machine.

    Args:
        what: Folder of a cohort, a run, a reproduction or a demo.
        cohort: The cohort that the runs were trained on; not needed if `what` holds it, as a demo does.
        port: Port of the server; 0 takes a free one.
        model: Import path of the runs' model if it is not one of drfuse's; importing it runs its code.

    Raises:
        InputError: If a folder cannot be read or the two do not fit together, the port is taken, or the extra
            `explore` is not installed.
    """
    if missing := [name for name in ("starlette", "uvicorn") if find_spec(name) is None]:
        raise InputError(
            f"{missing[0]} is not installed; run `pip install '.[explore]'` in drfuse's checkout"
        )
    if not 0 <= port <= 65535:
        raise InputError(f"port is {port}; expected 0 to 65535")
    import uvicorn

    from drfuse.explore.app import make_app
    from drfuse.explore.guard import Guard
    from drfuse.explore.opened import open_folder
    from drfuse.models import FusionModel

    if model is not None:
        import_class(model, FusionModel)
    opened = open_folder(what, cohort)
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((_ADDRESS, port))
        except OSError as error:
            raise InputError(
                f"port {port} cannot be used ({error.strerror}); choose another --port"
            ) from error
        port = server.getsockname()[1]
        console = Terminal(markup=False)

        def announce(token: str) -> None:
            # not logged: logs hide tokens, and may be kept
            address = f"http://{_ADDRESS}:{port}/?token={token}"
            console.print(f"open {address}", soft_wrap=True, highlight=False)

        config = uvicorn.Config(
            Guard(make_app(opened), announce, port),
            log_config=None,
            log_level="warning",
            access_log=False,  # addresses hold ids of stays
            proxy_headers=False,
            server_header=False,
            ws="none",
            timeout_graceful_shutdown=1,
        )
        with suppress(KeyboardInterrupt):  # the way to stop it
            uvicorn.Server(config).run(sockets=[server])
