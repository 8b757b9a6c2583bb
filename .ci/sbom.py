#!/usr/bin/env python3
"""Writes the CycloneDX 1.5 list of the packages that are compiled into jeton: `.ci/sbom.py TARGET > FILE`.

Read from `cargo metadata`: packages and edges of builds for TARGET, without development dependencies.
"""

import json
import subprocess
import sys
import urllib.parse


def metadata(target):
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", target]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def compiled(nodes, root):
    """Ids of what `root` needs to be built, with what each of them needs."""
    needed, waiting = {}, [root]
    while waiting:
        package = waiting.pop()
        if package in needed:
            continue
        uses = [
            edge["pkg"] for edge in nodes[package]["deps"] if any(kind["kind"] != "dev" for kind in edge["dep_kinds"])
        ]
        needed[package] = sorted(set(uses))
        waiting += uses
    return needed


def component(package, kind="library"):
    name, version = package["name"], package["version"]
    purl = f"pkg:cargo/{urllib.parse.quote(name)}@{urllib.parse.quote(version)}"
    described = {"type": kind, "bom-ref": package["id"], "name": name, "version": version, "purl": purl}
    if package.get("license"):
        # Old packages write a slash for OR.
        described["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
    return described


def checksums():
    """Checksums of the packages of Cargo.lock, by name and version."""
    import tomllib

    with open("Cargo.lock", "rb") as lock:
        packages = tomllib.load(lock)["package"]
    return {(package["name"], package["version"]): package.get("checksum") for package in packages}


def main():
    found = metadata(sys.argv[1])
    root = found["resolve"]["root"]
    needed = compiled({node["id"]: node for node in found["resolve"]["nodes"]}, root)
    packages = {package["id"]: package for package in found["packages"]}
    sums, components = checksums(), []
    for package in sorted(needed.keys() - {root}):
        described = component(packages[package])
        if checksum := sums.get((described["name"], described["version"])):
            described["hashes"] = [{"alg": "SHA-256", "content": checksum}]
        components.append(described)
    bom = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": component(packages[root], "application")},
        "components": components,
        "dependencies": [{"ref": package, "dependsOn": needed[package]} for package in sorted(needed)],
    }
    # Without the place of the checkout.
    text = json.dumps(bom, indent=1).replace(root, f"{packages[root]['name']}@{packages[root]['version']}")
    print(text)


main()
