"""Reads an exposition on stdin with the Prometheus project's own strict parser of OpenMetrics."""

import sys

from prometheus_client.openmetrics.parser import text_string_to_metric_families

families = list(text_string_to_metric_families(sys.stdin.read()))
assert len(families) > 10, families
print(f"metrics: {len(families)} metrics, {sum(len(f.samples) for f in families)} samples, well-formed")
