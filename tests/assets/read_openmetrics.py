"""Reads an exposition in the OpenMetrics format from standard input with the parser of prometheus_client, which is strict.

Prints each exemplar as JSON, a line each; fails where the format is not kept.
"""

import json
import sys

from prometheus_client.openmetrics.parser import text_string_to_metric_families

for family in text_string_to_metric_families(sys.stdin.read()):
    for sample in family.samples:
        if sample.exemplar:
            exemplar = sample.exemplar
            print(
                json.dumps(
                    {
                        "family": family.name,
                        "sample": sample.name,
                        "labels": sample.labels,
                        "exemplar": exemplar.labels,
                        "value": exemplar.value,
                        "at": float(exemplar.timestamp),
                    }
                )
            )
