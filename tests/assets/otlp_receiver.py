"""An OTLP receiver over HTTP with the official protobuf definitions: what it takes is written as JSON, a line an item.

Prints READY and the port, then reads modes from standard input, one a line:
  ok           takes everything
  unavailable  answers 503 and takes nothing
  throttle     answers 429 with Retry-After: 1 and takes nothing
  refuse       answers 400 and takes nothing
  slow         takes everything, 3 seconds late
  garbage      answers 200 with bytes that are no protobuf, and takes nothing
  page         answers 200 with a page of HTML, and takes nothing
  partial      takes the first item of each request and rejects the others
Each mode is acknowledged by a line with its name. The end of the input ends it. With --grpc it speaks gRPC, and knows the
modes ok, unavailable, refuse and partial.
"""

import argparse
import gzip
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as traces

MODE = "ok"
OUTPUT = sys.stdout
LOCK = threading.Lock()


def value(any_value):
    kind = any_value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [value(item) for item in any_value.array_value.values]
    if kind == "kvlist_value":
        return attributes(any_value.kvlist_value.values)
    return getattr(any_value, kind)


def attributes(pairs):
    keys = [pair.key for pair in pairs]
    assert len(keys) == len(set(keys)), f"an attribute twice: {keys}"
    return {pair.key: value(pair.value) for pair in pairs}


def spans(request):
    for of_resource in request.resource_spans:
        for of_scope in of_resource.scope_spans:
            for span in of_scope.spans:
                yield {
                    "kind": "span",
                    "resource": attributes(of_resource.resource.attributes),
                    "scope": of_scope.scope.name,
                    "name": span.name,
                    "span_kind": span.kind,
                    "trace_id": span.trace_id.hex(),
                    "span_id": span.span_id.hex(),
                    "parent_span_id": span.parent_span_id.hex(),
                    "trace_state": span.trace_state,
                    "flags": span.flags,
                    "start_ns": span.start_time_unix_nano,
                    "end_ns": span.end_time_unix_nano,
                    "attributes": attributes(span.attributes),
                    "events": [
                        {"name": it.name, "at_ns": it.time_unix_nano, "attributes": attributes(it.attributes)}
                        for it in span.events
                    ],
                    "status": span.status.code,
                    "status_message": span.status.message,
                }


def records(request):
    for of_resource in request.resource_logs:
        for of_scope in of_resource.scope_logs:
            for record in of_scope.log_records:
                yield {
                    "kind": "log",
                    "resource": attributes(of_resource.resource.attributes),
                    "name": record.event_name,
                    "body": value(record.body),
                    "severity": record.severity_number,
                    "trace_id": record.trace_id.hex(),
                    "span_id": record.span_id.hex(),
                    "at_ns": record.time_unix_nano,
                    "attributes": attributes(record.attributes),
                }


def points(request):
    for of_resource in request.resource_metrics:
        for of_scope in of_resource.scope_metrics:
            for metric in of_scope.metrics:
                kind = metric.WhichOneof("data")
                data = getattr(metric, kind)
                for point in data.data_points:
                    item = {
                        "kind": "metric",
                        "resource": attributes(of_resource.resource.attributes),
                        "name": metric.name,
                        "unit": metric.unit,
                        "type": kind,
                        "cumulative": getattr(data, "aggregation_temporality", None) == 2,
                        "monotonic": getattr(data, "is_monotonic", None),
                        "attributes": attributes(point.attributes),
                        "start_ns": point.start_time_unix_nano,
                        "at_ns": point.time_unix_nano,
                    }
                    if kind == "histogram":
                        assert len(point.bucket_counts) == len(point.explicit_bounds) + 1
                        assert sum(point.bucket_counts) == point.count
                        exemplars = [
                            {"trace_id": it.trace_id.hex(), "span_id": it.span_id.hex(), "value": it.as_double}
                            for it in point.exemplars
                        ]
                        item |= {
                            "count": point.count,
                            "sum": point.sum,
                            "bounds": list(point.explicit_bounds),
                            "exemplars": exemplars,
                        }
                    else:
                        item["value"] = point.as_double
                    yield item


SIGNALS = {
    "/v1/traces": (traces.ExportTraceServiceRequest, traces.ExportTraceServiceResponse, spans, "rejected_spans"),
    "/v1/metrics": (
        metrics.ExportMetricsServiceRequest,
        metrics.ExportMetricsServiceResponse,
        points,
        "rejected_data_points",
    ),
    "/v1/logs": (logs.ExportLogsServiceRequest, logs.ExportLogsServiceResponse, records, "rejected_log_records"),
}


def take(path, request, key, mode):
    """Writes the items of a request, and returns the answer."""
    _, response_type, items, rejected = SIGNALS[path]
    taken = list(items(request))
    response = response_type()
    if mode == "partial" and len(taken) > 1:
        setattr(response.partial_success, rejected, len(taken) - 1)
        response.partial_success.error_message = "one is enough"
        del taken[1:]
    with LOCK:
        OUTPUT.write("".join(json.dumps(item | {"api-key": key}) + "\n" for item in taken))
        OUTPUT.flush()
    return response


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        mode = MODE
        if self.path not in SIGNALS:
            return self.reply(404, b"no such path", "text/plain")
        if self.headers["Content-Type"] != "application/x-protobuf":
            return self.reply(415, b"", "text/plain")
        if mode == "unavailable":
            return self.reply(503, b"", "text/plain")
        if mode == "throttle":
            return self.reply(429, b"", "text/plain", {"Retry-After": "1"})
        if mode == "refuse":
            return self.reply(400, b"", "application/x-protobuf")
        if mode == "garbage":
            return self.reply(200, bytes(range(255, 0, -1)) * 9, "application/x-protobuf")
        if mode == "page":
            return self.reply(200, b"<html>It works!</html>", "text/html")
        if mode == "slow":
            time.sleep(3)
        request = SIGNALS[self.path][0].FromString(body)
        response = take(self.path, request, self.headers.get("api-key"), mode)
        return self.reply(200, response.SerializeToString(), "application/x-protobuf")

    def reply(self, status, body, kind, headers=None):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


def main():
    global MODE, OUTPUT
    parser = argparse.ArgumentParser()
    parser.add_argument("output")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--mode", default="ok")
    parser.add_argument("--grpc", action="store_true")
    parser.add_argument("--tls", nargs=2, metavar=("CERTIFICATE", "KEY"))
    arguments = parser.parse_args()
    MODE = arguments.mode
    OUTPUT = open(arguments.output, "a", encoding="utf-8")
    if arguments.grpc:
        return serve_grpc(arguments.port)
    server = ThreadingHTTPServer(("127.0.0.1", arguments.port), Receiver)
    server.daemon_threads = True
    if arguments.tls:
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*arguments.tls)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    read_modes(server.server_port)


def read_modes(port):
    global MODE
    print("READY", port, flush=True)
    for line in sys.stdin:
        MODE = line.strip()
        print(MODE, flush=True)


def serve_grpc(port):
    """The same over gRPC, as far as it has such answers: ok, partial, and unavailable."""
    from concurrent import futures

    import grpc
    from opentelemetry.proto.collector.logs.v1 import logs_service_pb2_grpc
    from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc

    def export(path):
        def answer(service, request, context):
            if MODE == "unavailable":
                context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
            if MODE == "refuse":
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not this")
            return take(path, request, dict(context.invocation_metadata()).get("api-key"), MODE)

        return answer

    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    for path, module, name in [
        ("/v1/traces", trace_service_pb2_grpc, "TraceService"),
        ("/v1/metrics", metrics_service_pb2_grpc, "MetricsService"),
        ("/v1/logs", logs_service_pb2_grpc, "LogsService"),
    ]:
        service = type(name, (getattr(module, f"{name}Servicer"),), {"Export": export(path)})
        getattr(module, f"add_{name}Servicer_to_server")(service(), server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    read_modes(port)
    server.stop(None)


main()
