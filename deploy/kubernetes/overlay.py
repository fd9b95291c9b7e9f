"""Writes what an overlay's patches make of the manifests, as far as Firn's overlays go: overlay.py KUSTOMIZATION FOLDER."""

import sys
from pathlib import Path

import yaml


def merge(old, new):
    """Maps by key, lists of named things by name; what else is new replaces the old."""
    if isinstance(old, dict) and isinstance(new, dict):
        return old | {key: merge(old[key], value) if key in old else value for key, value in new.items()}
    if isinstance(old, list) and all(isinstance(item, dict) and "name" in item for item in old + new):
        merged = {item["name"]: item for item in old}
        for item in new:
            merged[item["name"]] = merge(merged.get(item["name"], {}), item)
        return list(merged.values())
    return new


def main(kustomization, folder):
    overlay = yaml.safe_load(Path(kustomization).read_text())
    base = Path(kustomization).parent / overlay["resources"][0]
    files = yaml.safe_load((base / "kustomization.yaml").read_text())["resources"]
    objects = [one for file in files for one in yaml.safe_load_all((base / file).read_text())]
    for patch in (yaml.safe_load(patch["patch"]) for patch in overlay["patches"]):
        target = (patch["kind"], patch["metadata"]["name"])
        found = [one for one in objects if (one["kind"], one["metadata"]["name"]) == target]
        if len(found) != 1:
            raise SystemExit(f"{kustomization}: there is no {' '.join(target)} to patch")
        patched = merge(found[0], patch)
        containers = [len(one["spec"]["template"]["spec"]["containers"]) for one in (found[0], patched)]
        if containers[0] != containers[1]:
            raise SystemExit(f"{kustomization}: {' '.join(target)} has no container of that name")
        (Path(folder) / f"{target[1]}-patched.yaml").write_text(yaml.safe_dump(patched))


main(*sys.argv[1:])
