"""Holds deploy/ against schemas and against itself; scripts/deploy-check.sh runs it.

    check.py OVERLAY.yaml…   rendered overlays
    check.py --write         makes deploy/kubernetes/base/alerts.yaml of Prometheus' rules
"""

import json
import re
import sys
from pathlib import Path

import jsonschema
import kubernetes_validate
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SCHEMAS = Path(__file__).with_name("schemas")
# The oldest Kubernetes that is still in use somewhere, and the newest that there are schemas of.
KUBERNETES = ("1.30", "1.37")
RULES = DEPLOY / "prometheus/rules/facepipe.yml"
ALERTS = DEPLOY / "kubernetes/base/alerts.yaml"
DASHBOARD = DEPLOY / "grafana/dashboards/facepipe.json"
# What Prometheus itself knows.
NOT_OURS = {"up", "ALERTS"}
# Made by somebody, never by us.
SECRETS = {"facepipe-tokens", "facepipe-database-app", "facepipe-blobs"}

problems = []


def expect(holds, text):
    if not holds:
        problems.append(text)


def load(path):
    return yaml.safe_load(path.read_text())


def against_schema(name, document, what):
    schema = json.loads((SCHEMAS / f"{name}.json").read_text())
    for error in jsonschema.Draft7Validator(schema).iter_errors(document):
        problems.append(f"{what}: {'.'.join(str(part) for part in error.absolute_path)}: {error.message[:300]}")


# Compose


def compose():
    path = DEPLOY / "compose.yaml"
    whole = load(path)
    against_schema("compose-spec", whole, "compose.yaml")
    services = whole["services"]
    for name, service in services.items():
        what = f"compose.yaml: {name}"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                expect((DEPLOY / source).exists(), f"{what}: {source} is not there")
            else:
                expect(source in whole["volumes"], f"{what}: no volume {source}")
        for kind in ("networks", "secrets"):
            for used in service.get(kind, []):
                expect(used in whole[kind], f"{what}: no {kind} {used}")
        for needed, condition in service.get("depends_on", {}).items():
            expect(needed in services, f"{what}: depends on {needed}, which is not there")
            profiles = services.get(needed, {}).get("profiles", [])
            expect(not profiles or profiles == service.get("profiles"), f"{what}: {needed} is of another profile")
            healthy = condition["condition"] != "service_healthy" or "healthcheck" in services[needed]
            expect(healthy, f"{what}: {needed} has no health check")
        if "build" in service:
            dockerfile = ROOT / service["build"]["dockerfile"]
            expect(dockerfile.is_file(), f"{what}: {dockerfile} is not there")
            checked = "HEALTHCHECK" in dockerfile.read_text() or name == "models"
        else:
            checked = "healthcheck" in service
            # A moving tag is another program tomorrow.
            expect(re.search(r":\d+\.\d+", service["image"]) or re.search(r":v\d+\.\d+\.\d+$", service["image"]), f"{what}: {service['image']}")
        expect(checked, f"{what}: no health check")
        expect("memory" in service["deploy"]["resources"]["limits"], f"{what}: no limit of memory")
        for variable, value in service.get("environment", {}).items():
            hidden = re.search("PASSWORD|TOKEN|SECRET|KEY", variable)
            harmless = variable.endswith(("_FILE", "RANDOM_ROOT_PASSWORD"))
            expect(not hidden or harmless, f"{what}: {variable} belongs into a file")
    for profile in ("postgres", "mysql", "sqlite"):
        serving = [s for s in services.values() if profile in s.get("profiles", []) and s["image"].startswith("facepipe-backend:")]
        expect(len(serving) == 1, f"compose.yaml: {len(serving)} services of the server in the profile {profile}")
        wanted = 1 if profile == "sqlite" else 2
        expect(serving and serving[0]["deploy"]["replicas"] == wanted, f"compose.yaml: replicas of {profile}")


# Kubernetes


def pod_of(item):
    if item["kind"] == "CronJob":
        return item["spec"]["jobTemplate"]["spec"]["template"]
    return item["spec"]["template"] if item["kind"] in ("Deployment", "Job") else None


def overlay(path):
    items = [item for item in yaml.safe_load_all(path.read_text()) if item]
    expect(len(items) > 10, f"{path.name}: only {len(items)} objects")
    known = {(item["kind"], item["metadata"]["name"]) for item in items}
    policies = [item["spec"] for item in items if item["kind"] == "NetworkPolicy"]
    everything = {
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "facepipe"}},
        "policyTypes": ["Ingress", "Egress"],
    }
    expect(everything in policies, f"{path.name}: no policy closes what no other one opens")
    for item in items:
        what = f"{path.stem}: {item['kind']} {item['metadata']['name']}"
        expect(item["kind"] != "Secret", f"{what}: secrets are made by somebody, not written down")
        try:
            for version in KUBERNETES:
                kubernetes_validate.validate(item, version, strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            if (SCHEMAS / f"{item['kind']}.json").exists():
                against_schema(item["kind"], item, what)
            else:
                problems.append(f"{what}: there is no schema of {item['apiVersion']}")
        except kubernetes_validate.ValidationError as error:
            problems.append(f"{what}: {error.message[:300]}")
        if pod := pod_of(item):
            pod_is_closed(what, pod["spec"])
            refers_to_what_is_there(what, pod["spec"], known)
            labels = pod["metadata"]["labels"]
            selected = item["spec"].get("selector", {}).get("matchLabels", {}).items()
            expect(selected <= labels.items(), f"{what}: selects {dict(selected)}, its pods have {labels}")
        if item["kind"] == "Ingress":
            ingress(what, item, known)
        if item["kind"] == "Service":
            ports = [port["targetPort"] for port in item["spec"]["ports"]]
            expect(ports == ["http"], f"{what}: has the ports {ports}, of which only http is for clients")
            pods = [pod["metadata"]["labels"] for pod in map(pod_of, items) if pod]
            chosen = item["spec"]["selector"].items()
            expect(sum(chosen <= labels.items() for labels in pods) == 1, f"{what}: selects no workload or several")
        if item["kind"] == "HorizontalPodAutoscaler":
            target = item["spec"]["scaleTargetRef"]
            expect((target["kind"], target["name"]) in known, f"{what}: scales {target['name']}, which is not there")
        if item["kind"] == "NetworkPolicy":
            for rule in item["spec"].get("ingress", []):
                clients = "ingress-nginx" in json.dumps(rule["from"])
                ports = {port["port"] for port in rule["ports"]}
                expect(not clients or ports == {8080}, f"{what}: lets clients reach the ports {ports}")
        if item["kind"] == "ConfigMap":
            for name in item["data"]:
                expect(not re.search("PASSWORD|SECRET|DATABASE_URL|_KEY$", name), f"{what}: {name} belongs into a Secret")


def pod_is_closed(what, spec):
    expect(spec["securityContext"].get("runAsNonRoot") is True, f"{what}: may run as root")
    expect(spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault", f"{what}: no seccomp profile")
    expect(spec.get("automountServiceAccountToken") is False, f"{what}: gets a token of the cluster")
    for container in spec["containers"]:
        context = container["securityContext"]
        expect(context.get("readOnlyRootFilesystem") is True, f"{what}: its root can be written")
        expect(context.get("allowPrivilegeEscalation") is False, f"{what}: may become more")
        expect(context["capabilities"]["drop"] == ["ALL"], f"{what}: keeps capabilities")
        expect({"cpu", "memory"} <= container["resources"]["requests"].keys(), f"{what}: requests no cpu or memory")
        expect("memory" in container["resources"]["limits"], f"{what}: has no limit of memory")
        expect(re.search(r":\d", container["image"]), f"{what}: {container['image']} has no version")


def refers_to_what_is_there(what, spec, known):
    expect(("ServiceAccount", spec["serviceAccountName"]) in known, f"{what}: no account {spec['serviceAccountName']}")
    mounted = {volume["name"] for volume in spec["volumes"]}
    for volume in spec["volumes"]:
        if claim := volume.get("persistentVolumeClaim"):
            expect(("PersistentVolumeClaim", claim["claimName"]) in known, f"{what}: no claim {claim['claimName']}")
        if secret := volume.get("secret"):
            expect(secret["secretName"] in SECRETS, f"{what}: the Secret {secret['secretName']} is not in the guide")
    for container in spec["containers"]:
        used = {mount["name"] for mount in container["volumeMounts"]}
        expect(used == mounted, f"{what}: the volumes {used ^ mounted} are of no use")
        for mount in container["volumeMounts"]:
            expect(mount["name"] in mounted, f"{what}: mounts {mount['name']}, which is no volume")
        for source in container.get("envFrom", []):
            if secret := source.get("secretRef"):
                expect(secret["name"] in SECRETS, f"{what}: the Secret {secret['name']} is not in the guide")
            else:
                expect(("ConfigMap", source["configMapRef"]["name"]) in known, f"{what}: {source}")
        for variable in container.get("env", []):
            if secret := variable.get("valueFrom", {}).get("secretKeyRef"):
                expect(secret["name"] in SECRETS, f"{what}: the Secret {secret['name']} is not in the guide")


def ingress(what, item, known):
    hosts = {host for tls in item["spec"]["tls"] for host in tls["hosts"]}
    issuer = item["metadata"]["annotations"]["cert-manager.io/issuer"]
    expect(("Issuer", issuer) in known, f"{what}: no Issuer {issuer}")
    for rule in item["spec"]["rules"]:
        expect(rule["host"] in hosts, f"{what}: no TLS for {rule['host']}")
        for path in rule["http"]["paths"]:
            service = path["backend"]["service"]
            expect(("Service", service["name"]) in known, f"{what}: no Service {service['name']}")
            expect(service["port"] == {"name": "http"}, f"{what}: leads to {service['port']}")


# Alerts and dashboard


def operator_rules():
    text = RULES.read_text()
    body = text[text.index("groups:") :]
    head = (
        "# The alerts of deploy/prometheus/rules/facepipe.yml for Prometheus' operator: made by scripts/deploy-check.sh --write.\n"
        "apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: facepipe\nspec:\n"
    )
    return head + "".join(f"  {line}\n" for line in body.splitlines())


def metrics_of(expression):
    """The names of metrics in a query: what is no function, no label and no keyword."""
    bare = re.sub(r'"(\\.|[^"\\])*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", bare)
    bare = re.sub(r"\b(by|on|without|ignoring|group_left|group_right)\s*\([^)]*\)", "", bare)
    names = re.findall(r"\b[a-zA-Z_:][\w:]*\b(?!\s*\()", bare)
    return set(names) - {"and", "or", "unless", "by", "on", "bool", "offset", "inf", "nan"}


def queries():
    for group in load(RULES)["groups"]:
        for rule in group["rules"]:
            yield f"alert {rule['alert']}", rule["expr"]
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", []):
            yield f"panel {panel['title']!r}", target["expr"]
    yield "annotation", json.loads(DASHBOARD.read_text())["annotations"]["list"][0]["expr"]
    for rule in load(DEPLOY / "kubernetes/cluster/prometheus-adapter.yaml")["rules"]["custom"]:
        yield "prometheus-adapter", rule["seriesQuery"]


def watching():
    documented = re.findall(r"^\| `(\w+)` \| (\w+) ", (ROOT / "docs/metrics.md").read_text(), re.M)
    known = {name for name, _ in documented}
    for name, kind in documented:
        if kind == "histogram":
            known |= {f"{name}_{part}" for part in ("bucket", "sum", "count")}
    expect(len(documented) > 15, "docs/metrics.md: its table of metrics was not found")
    for where, query in queries():
        used = metrics_of(query)
        expect(used, f"{where}: asks for no metric: {query}")
        for name in used - NOT_OURS - known:
            problems.append(f"{where}: {name} is not in docs/metrics.md")
    for rule in load(DEPLOY / "kubernetes/cluster/prometheus-adapter.yaml")["rules"]["custom"]:
        scaling = (DEPLOY / "kubernetes/base/scaling.yaml").read_text()
        expect(f"name: {rule['name']['as']}}}" in scaling, f"prometheus-adapter: {rule['name']['as']} scales nothing")
    expect(ALERTS.read_text() == operator_rules(), f"{ALERTS.name} differs from the rules: scripts/deploy-check.sh --write")
    alerts = [rule for group in load(RULES)["groups"] for rule in group["rules"]]
    headings = re.findall(r"^### (Facepipe\w+)$", (ROOT / "docs/operations.md").read_text(), re.M)
    expect(sorted(headings) == sorted(rule["alert"] for rule in alerts), f"docs/operations.md has the runbooks {headings}")
    for rule in alerts:
        anchor = f"docs/operations.md#{rule['alert'].lower()}"
        expect(rule["annotations"]["runbook_url"].endswith(anchor), f"{rule['alert']}: its runbook is not {anchor}")
    tried = "".join(path.read_text() for path in sorted((DEPLOY / "prometheus/tests").glob("*.yml")))
    for rule in alerts:
        cases = re.findall(rf"alertname: {rule['alert']}\n +eval_time: \w+\n +exp_alerts:( \[\])?$", tried, re.M)
        expect(set(cases) == {"", " []"}, f"{rule['alert']}: no test of its firing, or none of its silence")
    panels = json.loads(DASHBOARD.read_text())["panels"]
    expect(len({panel["id"] for panel in panels}) == len(panels), "dashboard: two panels have one id")
    source = load(DEPLOY / "grafana/provisioning/datasources/prometheus.yml")["datasources"][0]["uid"]
    used = {panel["datasource"]["uid"] for panel in panels if "datasource" in panel}
    expect(used == {source}, f"dashboard: asks {used}, and the source is {source}")


def main():
    if sys.argv[1:] == ["--write"]:
        ALERTS.write_text(operator_rules())
        return
    compose()
    for path in sys.argv[1:]:
        overlay(Path(path))
    watching()
    for problem in problems:
        print(f"deploy: {problem}", file=sys.stderr)
    if problems:
        sys.exit(1)


main()
