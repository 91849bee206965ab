"""Renders the Helm chart by Helm's own code, and checks all manifests against the schemas of Kubernetes.

Usage: render_chart.py FOLDER, the folder `deploy/kubernetes`. Writes its `daemonset.yaml`, with --check only compares."""

import pathlib
import sys
import tomllib

import helm_python as helm
import kubernetes_validate
import yaml

KUBERNETES = "1.35"
# What the chart can do beyond its defaults.
FULL = {
    "kubernetes": "api",
    "config": {"log_requests": "errors", "users": 20, "price_file": "/etc/llamaprobe/prices.toml"},
    "files": {"prices.toml": "[default]\nprompt = 0.1\ncached = 0.02\ngenerated = 0.4\n"},
    "env": [{"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "http://collector:4318"}],
    "imagePullSecrets": [{"name": "registry"}],
    "priorityClassName": "system-node-critical",
    "podAnnotations": {"team": "inference"},
    "affinity": {"nodeAffinity": {}},
    "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
}
# Values that the chart's schema must refuse.
BAD = [{"port": 0}, {"prot": 9464}, {"config": {"listen": "127.0.0.1:1"}}, {"podMonitor": {"interval": "often"}},
       {"kubernetes": "yes"}]
# Kinds that are not Kubernetes' own: their schemas come with their operators, and are not checked here.
FOREIGN = {"PodMonitor", "ScaledObject"}


def render(chart, values):
    """The manifests as text, one each, without those that are empty."""
    rendered = chart.render(values, name="llamaprobe", namespace="llamaprobe")
    manifests = [text for _, file in sorted(rendered.items()) for text in file.split("\n---\n")]
    return [text.strip() for text in manifests if text.strip()]


def configuration(text):
    """The agent's configuration file, where this manifest holds it."""
    return yaml.safe_load(text).get("data", {}).get("llamaprobe.toml")


def checked(what, texts):
    """Validates all documents; returns their kinds."""
    kinds = []
    for text in texts:
        for document in filter(None, yaml.safe_load_all(text)):
            kind = document["kind"]
            kinds.append(kind)
            if kind not in FOREIGN:
                kubernetes_validate.validate(document, KUBERNETES, strict=True)
    note = [kind for kind in kinds if kind in FOREIGN]
    print(f"{what}: {', '.join(kinds)}" + (f" (schema not checked: {', '.join(note)})" if note else ""))
    return kinds


def main():
    folder = pathlib.Path(sys.argv[1])
    findings = helm.lint(str(folder / "llamaprobe"))
    print(f"Helm {helm.helm_sdk_version()}, lint: {findings}")
    with helm.Chart.load(str(folder / "llamaprobe")) as chart:
        plain, full = render(chart, {}), render(chart, FULL)
        assert checked("defaults", plain) == ["ConfigMap", "DaemonSet"], plain
        account = ["ServiceAccount", "ClusterRole", "ClusterRoleBinding"]
        assert checked("all values", full) == [*account, "ConfigMap", "DaemonSet", "PodMonitor"], full
        kubelet = render(chart, {"kubernetes": "kubelet"})
        assert checked("kubelet", kubelet) == [*account, "ConfigMap", "DaemonSet"], kubelet
        config = tomllib.loads(next(filter(None, map(configuration, full))))
        assert config == FULL["config"] and isinstance(config["users"], int), config
        for values in BAD:
            try:
                chart.validate_schema(values)
            except helm.HelmError as error:
                print(f"refused: {values}: {str(error).splitlines()[-1]}")
            else:
                sys.exit(f"the chart takes {values}")
    for example in sorted((folder / "examples").glob("*.yaml")):
        checked(example.name, [example.read_text()])
    text = "# Made of the chart beside it, with its defaults, by `cargo xtask manifests`.\n"
    text += "".join(f"---\n{manifest}\n" for manifest in plain)
    place = folder / "daemonset.yaml"
    if "--check" in sys.argv:
        if not place.exists() or place.read_text() != text:
            sys.exit(f"{place} is not what the chart renders: run `cargo xtask manifests`")
    else:
        place.write_text(text)


main()
