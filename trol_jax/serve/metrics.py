"""What Prometheus is told."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from trol_jax.serve.models import Served

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """In a registry of its own, so that a process may have several. model is "" where a request names none of ours."""

    def __init__(self, served: dict[str, Served]):
        self.registry = CollectorRegistry()

        def make(kind, name, text, labels=("model",), **options):
            return kind(f"trol_{name}", text, labels, registry=self.registry, **options)

        self.requests = make(
            Counter, "requests", "Requests that ended, by HTTP status; 499 = the client left.", ("model", "status")
        )
        self.prompt_tokens = make(Counter, "prompt_tokens", "Tokens of prompts, those of pictures among them.")
        self.completion_tokens = make(Counter, "completion_tokens", "Tokens of answers.")
        self.first = make(
            Histogram, "time_to_first_token_seconds", "From a request's arrival to its first token.", buckets=SECONDS
        )
        self.whole = make(Histogram, "request_seconds", "From a request's arrival to its end.", buckets=SECONDS)
        running = make(Gauge, "requests_running", "Requests that are being answered.")
        waiting = make(Gauge, "requests_waiting", "Requests that wait for a slot.")
        for name, one in served.items():
            running.labels(name).set_function(lambda one=one: one.server.load[0])
            waiting.labels(name).set_function(lambda one=one: one.server.load[1])
