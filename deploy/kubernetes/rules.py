"""What must hold of rendered manifests, beyond Kubernetes' schemas.

    rules.py RENDERED [gpu|mesh|tls]…    each that is named is there, and no other
    rules.py --same RENDERED RENDERED    both have the same objects
"""

import re
import sys
from pathlib import Path

import yaml

SERVICES = {"data-prep", "trainer", "model-registry", "inference", "gateway"}
TLS = {"FIRN_TLS_CA": "ca.crt", "FIRN_TLS_CERT": "tls.crt", "FIRN_TLS_KEY": "tls.key"}


def fail(message):
    raise SystemExit(f"deploy/kubernetes/rules.py: {message}")


def read(path):
    return [one for one in yaml.safe_load_all(Path(path).read_text()) if one]


def of_kind(objects, kind):
    return {one["metadata"]["name"]: one for one in objects if one["kind"] == kind}


def pod(deployment):
    """The container, its variables, the path of each mount by volume, and the volumes' secrets."""
    spec = deployment["spec"]["template"]["spec"]
    [container] = spec["containers"]
    variables = [variable["name"] for variable in container["env"]]
    if len(set(variables)) != len(variables):
        fail(f"{container['name']} has a variable twice: {sorted(variables)}")
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume.get("secret", {}) for volume in spec["volumes"]}
    if set(mounts) != set(volumes):
        fail(f"{container['name']} mounts {sorted(mounts)} of {sorted(volumes)}")
    return container, {one["name"]: one.get("value") for one in container["env"]}, mounts, volumes


def secret_files(name, env, mounts, volumes):
    """Each file below /secrets and /tls comes from a secret that holds it, and that the service's group may read."""
    for variable, value in env.items():
        if not re.match("/(secrets|tls)/", value or ""):
            continue
        folder, _, file = value.rpartition("/")
        volume = next((volume for volume, path in mounts.items() if path == folder), None)
        secret = volumes.get(volume) or fail(f"{name}: {variable} is {value}, and no secret is mounted there")
        if "items" in secret and file not in [item["path"] for item in secret["items"]]:
            fail(f"{name}: {variable} is {value}, and the secret {secret['secretName']} shows no {file}")
        if secret.get("defaultMode") != 0o440:
            fail(f"{name}: the files of {secret['secretName']} must have the mode 0440")


def tls(name, env, volumes):
    for variable, file in TLS.items():
        if env.get(variable) != f"/tls/{file}":
            fail(f"{name}: {variable} is {env.get(variable)} and not /tls/{file}")
    # Other names could be given; these are what README.md makes.
    if volumes["tls"].get("secretName") != f"firn-{name}-tls":
        fail(f"{name} has the certificate of {volumes['tls'].get('secretName')}")


def check(path):
    objects = read(path)
    deployments, services = of_kind(objects, "Deployment"), of_kind(objects, "Service")
    if set(deployments) != SERVICES or set(services) != SERVICES:
        fail(f"{path} has {sorted(deployments)} and {sorted(services)}")
    pods = {name: pod(deployment) for name, deployment in deployments.items()}
    with_tls = {name for name, (_, env, _, _) in pods.items() if TLS.keys() & env.keys()}
    with_mesh = {name for name, (_, env, _, _) in pods.items() if "FIRN_MESH_TOKEN_FILE" in env}
    for some in (with_tls, with_mesh):
        if some and some != SERVICES:
            fail(f"{path}: {sorted(SERVICES - some)} do not speak as {sorted(some)} do")
    for name, (container, env, mounts, volumes) in pods.items():
        secret_files(name, env, mounts, volumes)
        if with_tls:
            tls(name, env, volumes)
        for variable, value in env.items():
            if not variable.endswith("_ENDPOINT"):
                continue
            scheme, host, port = re.fullmatch(r"(https?)://([a-z-]+):(\d+)", value).groups()
            if scheme != ("https" if with_tls else "http"):
                fail(f"{path}: {name} asks {value}")
            listed = services[host]["spec"]["ports"][0]
            if listed["port"] != int(port):
                fail(f"{path}: {name} asks {value}, and the port is {listed['port']}")
        # Probes can't show a certificate: they must not go where one is asked for.
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        for probe in ("readinessProbe", "livenessProbe"):
            at = ports[container[probe]["httpGet"]["port"]]
            if env["FIRN_HEALTH_LISTEN"] != f"0.0.0.0:{at}" or container[probe]["httpGet"].get("scheme", "HTTP") != "HTTP":
                fail(f"{path}: the {probe} of {name} does not go to the health port")
    for name, service in services.items():
        speaks = "http" if name == "gateway" else "https" if with_tls else "kubernetes.io/h2c"
        if service["spec"]["ports"][0]["appProtocol"] != speaks:
            fail(f"{path}: the service {name} does not say {speaks}")
    return {"tls": bool(with_tls), "mesh": bool(with_mesh), "gpu": "nvidia.com/gpu" in Path(path).read_text()}


def ordered(value):
    """The same whatever the order of keys, and of named things in lists."""
    if isinstance(value, dict):
        return {key: ordered(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        items = [ordered(item) for item in value]
        return sorted(items, key=str) if all(isinstance(item, dict) for item in items) else items
    return value


def main(arguments):
    if arguments[:1] == ["--same"]:
        one, other = (ordered(read(path)) for path in arguments[1:])
        for left in one:
            if left not in other:
                fail(f"{arguments[1]} has {left['kind']} {left['metadata']['name']} otherwise than {arguments[2]}")
        if len(one) != len(other):
            fail(f"{arguments[1]} has {len(one)} objects, {arguments[2]} has {len(other)}")
        return
    path, *wanted = arguments
    found = {what for what, there in check(path).items() if there}
    if found != set(wanted):
        fail(f"{path} has {sorted(found)} and not {sorted(wanted)}")


main(sys.argv[1:])
