#!/usr/bin/env bash
# Shows on this machine's GPU what no test on a CPU can, in fifteen minutes, what is worth most first; each part has a limit
# of time, and nothing begins that could not end before LIMIT_S. Installs into a folder of its own.
#
#   deploy/gpu/prove.sh [OUT]                  # in a checkout, or in what pack.sh packed; figures in OUT (out/gpu)
#
# PYTHON (python3) has torch, or there is a package index, or wheels/ has all. LIMIT_S (900): of all. SERVE=no leaves out what
# needs vLLM. DEVICE=cpu tries the script itself. Ends with 1 if something was not as it must be, or did not run; the rest is done all the same.
set -uo pipefail

cd "$(dirname "$0")/../.." || exit 2
out=${1:-out/gpu}
python=${PYTHON:-python3}
limit_s=${LIMIT_S:-900}
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
failed=0

part() { # NAME LIMIT_S COMMAND...: what it prints is kept, too
    local name=$1 most_s=$2
    shift 2
    if [ $((SECONDS + most_s)) -gt "$limit_s" ]; then
        failed=1
        echo "== $name was not run: it may take $most_s s, and $((limit_s - SECONDS)) s are left"
        return
    fi
    echo "== $name (at most $most_s s, from second $SECONDS): $*"
    timeout -k 30 "$most_s" "$@" 2>&1 | tee "$out/$name.txt"
    local code=${PIPESTATUS[0]}
    [ "$code" -eq 0 ] || { failed=1; echo "== $name ended with $code"; }
}
has() { "$python" -c "import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, sys.argv[1:])))" "$@"; }

export PYTHONPATH=$PWD/src${PYTHONPATH:+:$PYTHONPATH}
if ! has msgspec zmq && compgen -G "wheels/*.whl" > /dev/null; then
    "$python" -m pip install --quiet --no-index --no-deps --target "$out/packages" wheels/*.whl || {
        version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        echo "wheels/ is not for this Python: pack it by PYTHON_VERSION=$version deploy/gpu/pack.sh, or name another as PYTHON"
        exit 2
    }
    export PYTHONPATH=$PYTHONPATH:$out/packages
fi
has torch msgspec zmq || { echo "torch, msgspec or pyzmq is missing: pip install '.[gpu]', or see deploy/gpu/README.md"; exit 2; }

device=${DEVICE:-cuda}
serves=
if [ "${SERVE:-yes}" != no ] && has vllm psutil aiohttp httpx rich yaml; then serves=1; else echo "== nothing is served"; fi

if [ "$device" = cpu ]; then
    part quick 240 "$python" benchmarks/gpu_kv.py --device cpu --quick --out "$out/quick"
    [ -z "$serves" ] || part proof 400 "$python" benchmarks/gpu_proof.py --device cpu --out "$out/proof"
    exit $failed
fi
proof() { # NAME LIMIT_S FLAGS...
    local name=$1 most_s=$2
    shift 2
    part "$name" "$((most_s + 60))" "$python" benchmarks/gpu_proof.py --limit-s "$most_s" --out "$out/$name" "$@"
}
part smi 20 nvidia-smi
[ -z "$serves" ] || part doctor 60 "$python" -m llumnix doctor --instances 2 --instances-per-gpu 2 --port 0
part quick 90 "$python" benchmarks/gpu_kv.py --quick --out "$out/quick"
[ -z "$serves" ] || proof proof 360
part gpu_kv 240 "$python" benchmarks/gpu_kv.py --out "$out"
if [ -n "$serves" ]; then
    proof host 150 --parts moves -- --transports host
    proof qwen3 110 --model qwen3-8b --parts equality
fi
part grouped 90 "$python" benchmarks/gpu_kv.py --heads 8 --parts exact,bandwidth,ipc --out "$out/grouped"
exit $failed
