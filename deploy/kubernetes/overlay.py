"""Renders kustomizations as far as Firn's go, for machines without kustomize: overlay.py KUSTOMIZATION-FOLDER prints what
`kubectl kustomize` does, in another order. What it does not know it refuses: nothing is left out in silence."""

import re
import sys
from pathlib import Path

import yaml

# What each kind of file may hold here.
KNOWN = {"apiVersion", "kind", "resources", "components", "patches", "images"}


def render(folder):
    """The objects of a folder with a kustomization.yaml."""
    return build(Path(folder), [])


def build(folder, objects, roots=()):
    file = folder / "kustomization.yaml"
    what = yaml.safe_load(file.read_text())
    unknown = set(what) - KNOWN
    if unknown:
        raise SystemExit(f"{file}: overlay.py does not know {', '.join(sorted(unknown))}")
    root = folder.resolve()
    objects = list(objects)
    for name in what.get("resources", []):
        path = folder / name
        if path.is_dir():
            objects += build(inner(path, root, roots, file), [], (*roots, root))
        else:
            objects += [one for one in yaml.safe_load_all(path.read_text()) if one]
    for name in what.get("components", []):
        objects = build(inner(folder / name, root, roots, file), objects, (*roots, root))
    for patch in what.get("patches", []):
        objects = patched(objects, patch, file)
    for image in what.get("images", []):
        rename(objects, image, file)
    return objects


def inner(path, root, roots, file):
    """Kustomize goes into no folder that holds one that it came from."""
    resolved = path.resolve()
    for visited in (*roots, root):
        if visited == resolved or resolved in visited.parents:
            raise SystemExit(f"{file}: {path} holds {visited}, which kustomize takes for a cycle")
    return path


def patched(objects, patch, file):
    change = yaml.safe_load(patch["patch"])
    target = patch.get("target") or {"kind": change["kind"], "name": re.escape(change["metadata"]["name"])}
    found = [one for one in objects if selects(target, one)]
    if not found or (isinstance(change, dict) and len(found) != 1):
        raise SystemExit(f"{file}: {len(found)} objects are what {target} asks to patch")
    apply = operations if isinstance(change, list) else merged
    return [apply(one, change, file) if one in found else one for one in objects]


def selects(target, one):
    kind, name = target.get("kind", one["kind"]), target.get("name", ".*")
    return one["kind"] == kind and re.fullmatch(name, one["metadata"]["name"]) is not None


def operations(one, change, file):
    """JSON patches that append to a list, or replace what is there."""
    one = yaml.safe_load(yaml.safe_dump(one))
    for step in change:
        *way, last = step["path"].strip("/").split("/")
        at = one
        for key in way:
            at = at[int(key)] if isinstance(at, list) else at[key]
        if step["op"] == "add" and last == "-" and isinstance(at, list):
            at.append(step["value"])
        elif step["op"] == "replace" and isinstance(at, dict) and last in at:
            at[last] = step["value"]
        else:
            raise SystemExit(f"{file}: overlay.py can't {step['op']} {step['path']} of {one['metadata']['name']}")
    return one


def merged(old, new, file):
    """Maps by key, lists of named things by name; what else is new replaces the old. A container must be there."""
    before = containers(old)
    result = merge(old, new)
    if containers(result) != before:
        raise SystemExit(f"{file}: {old['metadata']['name']} has no container {set(containers(result)) - set(before)}")
    return result


def containers(one):
    return [container["name"] for container in one["spec"]["template"]["spec"]["containers"]]


def merge(old, new):
    if isinstance(old, dict) and isinstance(new, dict):
        return old | {key: merge(old[key], value) if key in old else value for key, value in new.items()}
    if isinstance(old, list) and all(isinstance(item, dict) and "name" in item for item in old + new):
        result = {item["name"]: item for item in old}
        for item in new:
            result[item["name"]] = merge(result.get(item["name"], {}), item)
        return list(result.values())
    return new


def rename(objects, image, file):
    pods = [one["spec"]["template"]["spec"] for one in objects if "template" in one.get("spec", {})]
    found = 0
    for container in (container for pod in pods for container in pod["containers"]):
        name, tag = container["image"].rsplit(":", 1)
        if name == image["name"]:
            container["image"] = f"{image.get('newName', name)}:{image.get('newTag', tag)}"
            found += 1
    if not found:
        raise SystemExit(f"{file}: there is no image {image['name']}")


if __name__ == "__main__":
    yaml.safe_dump_all(render(sys.argv[1]), sys.stdout, sort_keys=False)
