"""The server for language models: the tools over MCP, on stdin and stdout (the official Python SDK)."""

import inspect
import json
import signal
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import zeropass as zp
from zeropass.atlas.read import Atlas
from zeropass.errors import BadOption, MissingExtra, ZeropassError
from zeropass.mcp.tools import ABOUT, Json, ToolFunction, Tools
from zeropass.tokens.shown import shown_text
from zeropass.web.context import Context, local_name

try:
    import anyio
    from anyio import from_thread, to_thread
    from mcp import types
    from mcp.server.context import ServerRequestContext
    from mcp.server.lowlevel import Server
    from mcp.server.stdio import stdio_server
    from pydantic import BaseModel, ConfigDict, ValidationError, create_model
except ImportError as _error:
    raise MissingExtra("A server for language models needs an extra: pip install 'zeropass[mcp]'.") from _error

if TYPE_CHECKING:
    from zeropass.lens import Lens
    from zeropass.model.model import Model

__all__ = ["application", "serve_mcp"]


def serve_mcp(
    source: "Atlas | Lens",
    *,
    model: str | None = None,
    second: "Model | None" = None,
    base: "Model | None" = None,
    features: str | None = None,
    hook: str | None = None,
) -> None:
    """Answer a client's calls of `Tools` on stdin and stdout, until it closes stdin or Ctrl-C ends the process.

    Args:
        source: An atlas, or a lens on a model.
        model: The name of the model that the atlas was built from, for what only the weights can tell.
        second: Another model, for `Tools.match`.
        base: The model that the weights were tuned from, for `Tools.diff`.
        features: The folder or hub id of a dictionary of features, for `Tools.feature`; it needs the weights.
        hook: Where the dictionary reads and writes, if its files do not say it (`open_dictionary`).

    Raises:
        BadDictionary: The dictionary cannot be opened, or does not fit the model.
        BadOption: The weights, which the dictionary needs, are not at hand.
    """
    if isinstance(source, Atlas):
        context = Context(source, weights=model or local_name(source))
        tools = Tools(weights=context.lens, atlas=source, second=second, base=base)
    else:
        tools = Tools(weights=lambda: source, second=second, base=base)
    if features is not None:
        tools.dictionary = zp.open_dictionary(tools.weights().model, features, hook)
    # Python's own handler would wait for the thread that reads stdin. Nothing is written that could stay half done.
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        anyio.run(_serve, application(tools))
    finally:
        signal.signal(signal.SIGINT, handler)


async def _serve(server: Server[Any]) -> None:
    async with stdio_server() as (read_stream, write_stream):
        await server.run(read_stream, write_stream, server.create_initialization_options())


def application(tools: Tools) -> Server[Any]:
    """Return the server of some tools; it answers one call at a time."""
    by_name = {function.__name__: _Tool(function, _arguments(function)) for function in tools.offered()}
    limiter = anyio.CapacityLimiter(1)  # neither lenses nor comparisons are made for several threads

    async def list_tools(_context: Any, _params: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[tool.listed() for tool in by_name.values()])

    async def call_tool(
        context: ServerRequestContext[Any], params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        def progress(stage: str, done: int, total: int) -> None:
            from_thread.run(context.session.report_progress, done, total, stage)

        def work() -> Json:
            if params.name not in by_name:
                raise BadOption(f"There is no tool {params.name!r}; tools are {', '.join(by_name)}.")
            tools.progress = progress
            return by_name[params.name].call(params.arguments or {})

        try:
            value = await to_thread.run_sync(work, limiter=limiter)
        except ZeropassError as error:
            return _result(shown_text(str(error), limit=2000), is_error=True)
        except Exception:  # a damaged file can cause any; the client learns that it failed, the terminal why
            traceback.print_exc()
            return _result("This could not be answered; the terminal of the server says why.", is_error=True)
        return _result(json.dumps(value, ensure_ascii=False, allow_nan=False))

    return Server(
        "zeropass", version=zp.__version__, instructions=ABOUT, on_list_tools=list_tools, on_call_tool=call_tool
    )


@dataclass(frozen=True)
class _Tool:
    """A tool with the model that checks its arguments."""

    function: ToolFunction
    arguments: type[BaseModel]

    def listed(self) -> types.Tool:
        """Return what a client is told about the tool."""
        return types.Tool(
            name=self.function.__name__,
            description=inspect.getdoc(self.function),
            input_schema=self.arguments.model_json_schema(),
            annotations=types.ToolAnnotations(read_only_hint=True, open_world_hint=False),
        )

    def call(self, given: dict[str, Any]) -> Json:
        """Return the answer of the tool; raise BadOption, naming the arguments, for those that it does not take."""
        try:
            checked = self.arguments.model_validate(given)
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
            raise BadOption(f"{self.function.__name__} does not take these arguments: {faults}.") from error
        return self.function(**{name: getattr(checked, name) for name in self.arguments.model_fields})


def _arguments(function: ToolFunction) -> type[BaseModel]:
    """Return the model that checks the arguments of a tool: the parameters of its function, and no others."""
    fields: dict[str, Any] = {
        name: (parameter.annotation, ... if parameter.default is parameter.empty else parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
    }
    return create_model(function.__name__, __config__=ConfigDict(extra="forbid"), **fields)


def _result(text: str, *, is_error: bool = False) -> types.CallToolResult:
    # A lone surrogate, which a path may have, cannot be sent; in JSON its escape means the same.
    sendable = text.encode("utf-8", "backslashreplace").decode()
    return types.CallToolResult(content=[types.TextContent(type="text", text=sendable)], is_error=is_error)
