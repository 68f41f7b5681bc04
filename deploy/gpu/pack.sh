#!/usr/bin/env bash
# Packs what a GPU machine without a package index needs, on a machine that has one. In a checkout:
#
#   deploy/gpu/pack.sh kit.tar                 # torch is there: sources and two small wheels, for gpu_kv.py
#   deploy/gpu/pack.sh kit.tar --serve         # nothing is there: vLLM and all that it needs, some 6 GB
#
# PYTHON_VERSION (3.12) is the one of that machine. With --serve there must be one here, too (python3.12, or PYTHON): what
# a package needs depends on it. There: tar xf kit.tar && ./kit/deploy/gpu/prove.sh
set -euo pipefail

usage() { echo "usage: deploy/gpu/pack.sh FILE.tar [--serve]" >&2; exit 2; }
[ $# -ge 1 ] && [ $# -le 2 ] && [ "${1#-}" = "$1" ] || usage
case "${2:-}" in "") serve= ;; --serve) serve=1 ;; *) usage ;; esac

version=${PYTHON_VERSION:-3.12}
python=${PYTHON:-python3}
if [ -n "$serve" ]; then
    python=${PYTHON:-python$version}
    is=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> /dev/null) || is=none
    [ "$is" = "$version" ] || {
        echo "There is no Python $version here ($python is $is): name one as PYTHON, or say PYTHON_VERSION." >&2
        exit 2
    }
fi

root=$(cd "$(dirname "$0")/../.." && pwd)
kit=$(mktemp -d)
trap 'rm -rf "$kit"' EXIT
mkdir -p "$kit/kit/wheels"
git -C "$root" archive HEAD | tar -x -C "$kit/kit"

version_of() { sed -n "s/^$1==//p" "$root/requirements/cpu.lock"; }
# All that a machine with glibc 2.31 takes: pip takes wheels for what it is told, and none for what is older.
platforms=()
for glibc in $(seq 31 -1 5); do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
for old in 2014 2010 1; do platforms+=(--platform "manylinux${old}_x86_64"); done
fetch() {
    ${PIP:-$python -m pip} download --quiet --dest "$kit/kit/wheels" --only-binary :all: --python-version "$version" \
        "${platforms[@]}" "$@"
}
if [ -n "$serve" ]; then
    # What it runs on, draws figures with and is built by: an installation without an index builds it there.
    needed=$("$python" - "$root/pyproject.toml" << 'EOF'
import sys, tomllib
said = tomllib.load(open(sys.argv[1], "rb"))
project = said["project"]
print(*project["dependencies"], *project["optional-dependencies"]["figures"], *said["build-system"]["requires"], sep="\n")
EOF
    )
    mapfile -t needed <<< "$needed"
    fetch "vllm==0.32.*" "${needed[@]}"
    ! compgen -G "$kit/kit/wheels/torch-*cpu*" || {
        echo "That is PyTorch for CPUs: pip's configuration names a source of it (pip config list)." >&2
        exit 1
    }
else
    fetch --no-deps "msgspec==$(version_of msgspec)" "pyzmq==$(version_of pyzmq)"
fi
tar -cf "$1" -C "$kit" kit
echo "$1: $(du -h "$1" | cut -f1), $(find "$kit/kit/wheels" -name '*.whl' | wc -l) wheels"
