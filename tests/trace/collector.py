"""A collector that keeps what services send."""

import threading
from concurrent import futures
from dataclasses import dataclass

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service


@dataclass(frozen=True)
class Span:
    """A span; times are in nanoseconds since 1970."""

    trace: str
    id: str
    parent: str
    service: str
    name: str
    begin: int
    end: int
    attributes: dict

    @property
    def seconds(self):
        return (self.end - self.begin) / 1e9


def _value(value):
    kind = value.WhichOneof("value")
    return getattr(value, kind) if kind else None


def _attributes(pairs):
    return {pair.key: _value(pair.value) for pair in pairs}


class Collector(service.TraceServiceServicer):
    """Listens on a free port of this machine."""

    def __init__(self):
        self._lock = threading.Lock()
        self._spans = []
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        service.add_TraceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def Export(self, request, context):  # noqa: N802: the protocol's name
        for of_resource in request.resource_spans:
            name = _attributes(of_resource.resource.attributes).get("service.name", "?")
            spans = [span for scope in of_resource.scope_spans for span in scope.spans]
            with self._lock:
                self._spans += [
                    Span(
                        span.trace_id.hex(),
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                        name.removeprefix("firn-"),
                        span.name,
                        span.start_time_unix_nano,
                        span.end_time_unix_nano,
                        _attributes(span.attributes),
                    )
                    for span in spans
                ]
        return messages.ExportTraceServiceResponse()

    def spans(self):
        with self._lock:
            return list(self._spans)

    def stop(self):
        self._server.stop(grace=1).wait(5)
