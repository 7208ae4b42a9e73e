"""Both applications: the operator API behind its token, and the device-facing one, which can only enrol."""

from importlib.metadata import version

from litestar import Litestar
from litestar.di import Provide
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin, YamlRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme
from litestar.types import ASGIApp

from controller.api import devices, enroll, problems, queries, releases, rollouts
from controller.api.access import TokenCheck
from controller.api.office import Office

MAX_BODY_BYTES = 1 << 20
"""Of a JSON request; files and metadata have limits of their own."""


def operator_app(office: Office, token: str) -> ASGIApp:
    """Return the operator API; its description is at /schema, without the token."""
    app = Litestar(
        [*releases.HANDLERS, *devices.HANDLERS, *rollouts.HANDLERS, *queries.HANDLERS],
        dependencies={"office": Provide(lambda: office, sync_to_thread=False)},
        exception_handlers=problems.HANDLERS,
        request_max_body_size=MAX_BODY_BYTES,
        logging_config=None,
        openapi_config=OpenAPIConfig(
            title="wasmfleet operator API",
            version=version("wasmfleet"),
            path="/schema",
            # The viewers would load their scripts from other people's servers.
            render_plugins=[JsonRenderPlugin(path="/"), JsonRenderPlugin(), YamlRenderPlugin()],
            use_handler_docstrings=True,
            security=[{"token": []}],
            components=Components(security_schemes={"token": SecurityScheme(type="http", scheme="bearer")}),
        ),
    )
    return TokenCheck(app, token)


def device_app(office: Office) -> ASGIApp:
    """Return what devices reach."""
    return Litestar(
        [*enroll.HANDLERS],
        dependencies={"office": Provide(lambda: office, sync_to_thread=False)},
        exception_handlers=problems.HANDLERS,
        request_max_body_size=MAX_BODY_BYTES,
        logging_config=None,
        openapi_config=None,
    )
