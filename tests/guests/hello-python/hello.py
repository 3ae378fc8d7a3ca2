"""A guest with a Python interpreter inside: the slowest one to start."""

from componentize_py_types import Ok
from wit_world import exports
from wit_world.imports.types import (
    Fields,
    IncomingRequest,
    OutgoingBody,
    OutgoingResponse,
    ResponseOutparam,
)

BODY = b"hello from Python\n"


class IncomingHandler(exports.IncomingHandler):
    def handle(self, request: IncomingRequest, response_out: ResponseOutparam) -> None:
        length = str(len(BODY)).encode()
        response = OutgoingResponse(Fields.from_list([("content-length", length)]))
        body = response.body()
        ResponseOutparam.set(response_out, Ok(response))
        # A stream has to be gone before its body ends.
        with body.write() as stream:
            stream.blocking_write_and_flush(BODY)
        OutgoingBody.finish(body, None)
