#!/usr/bin/env bash
# Packs what a GPU machine without a package index needs, on a machine that has one. In a checkout:
#
#   deploy/gpu/pack.sh kit.tar                 # torch is there: sources and two small wheels, for gpu_kv.py
#   deploy/gpu/pack.sh kit.tar --serve         # nothing is there: vLLM and all that it needs, some 6 GB
#
# PYTHON_VERSION (3.12) is the one of that machine. There: tar xf kit.tar && ./kit/deploy/gpu/prove.sh
set -euo pipefail

usage() { echo "usage: deploy/gpu/pack.sh FILE.tar [--serve]" >&2; exit 2; }
[ $# -ge 1 ] && [ "${1#-}" = "$1" ] || usage
case "${2:-}" in "") serve= ;; --serve) serve=1 ;; *) usage ;; esac

root=$(cd "$(dirname "$0")/../.." && pwd)
kit=$(mktemp -d)
trap 'rm -rf "$kit"' EXIT
mkdir -p "$kit/kit/wheels"
git -C "$root" archive HEAD | tar -x -C "$kit/kit"

version_of() { sed -n "s/^$1==//p" "$root/requirements/cpu.lock"; }
fetch() {
    "${PIP:-pip}" download --quiet --dest "$kit/kit/wheels" --only-binary :all: --python-version "${PYTHON_VERSION:-3.12}" \
        --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 "$@"
}
if [ -n "$serve" ]; then
    # What it runs on, draws figures with and is built by: an installation without an index builds it there.
    needed=$(python3 - "$root/pyproject.toml" << 'EOF'
import sys, tomllib
said = tomllib.load(open(sys.argv[1], "rb"))
project = said["project"]
print(*project["dependencies"], *project["optional-dependencies"]["figures"], *said["build-system"]["requires"], sep="\n")
EOF
    )
    mapfile -t needed <<< "$needed"
    fetch "vllm==0.32.*" "${needed[@]}"
else
    fetch --no-deps "msgspec==$(version_of msgspec)" "pyzmq==$(version_of pyzmq)"
fi
tar -cf "$1" -C "$kit" kit
echo "$1: $(du -h "$1" | cut -f1), $(find "$kit/kit/wheels" -name '*.whl' | wc -l) wheels"
