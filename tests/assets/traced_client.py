"""A client as people instrument it: OpenTelemetry's SDK, and its instrumentation of requests.

Sends a chat to the server at ADDRESS, COUNT times, and writes its own spans as JSON, a line each.
"""

import json
import sys

import requests
from opentelemetry import trace
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

address, count = sys.argv[1], int(sys.argv[2])
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
RequestsInstrumentor().instrument()

for number in range(count):
    with trace.get_tracer("application").start_as_current_span("answer a user"):
        body = {"messages": [{"role": "user", "content": f"number {number}"}], "max_tokens": 8}
        requests.post(f"http://{address}/v1/chat/completions", json=body, timeout=60).raise_for_status()

for span in exporter.get_finished_spans():
    context, parent = span.get_span_context(), span.parent
    print(
        json.dumps(
            {
                "name": span.name,
                "span_kind": span.kind.name,
                "trace_id": f"{context.trace_id:032x}",
                "span_id": f"{context.span_id:016x}",
                "parent_span_id": f"{parent.span_id:016x}" if parent else "",
                "start_ns": span.start_time,
                "end_ns": span.end_time,
            }
        )
    )
