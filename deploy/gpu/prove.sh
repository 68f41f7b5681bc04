#!/usr/bin/env bash
# Shows on this machine's GPU what no test on a CPU can: minutes, each part with a limit. Installs into a folder of its own.
#
#   deploy/gpu/prove.sh [OUT]                  # in a checkout, or in what pack.sh packed; figures in OUT (out/gpu)
#
# PYTHON (python3) has torch, or there is a package index, or wheels/ has all. DEVICE=cpu tries the script itself.
# Ends with 1 if something was not as it must be; the rest is done all the same.
set -uo pipefail

cd "$(dirname "$0")/../.." || exit 2
out=${1:-out/gpu}
python=${PYTHON:-python3}
mkdir -p "$out" || exit 2
failed=0

part() { # NAME LIMIT_S COMMAND...: what it prints is kept, too
    local name=$1 limit_s=$2
    shift 2
    echo "== $name (at most $limit_s s): $*"
    timeout -k 5 "$limit_s" "$@" 2>&1 | tee "$out/$name.txt"
    local code=${PIPESTATUS[0]}
    [ "$code" -eq 0 ] || { failed=1; echo "== $name ended with $code"; }
}
has() { "$python" -c "import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, sys.argv[1:])))" "$@"; }

export PYTHONPATH=$PWD/src${PYTHONPATH:+:$PYTHONPATH}
if ! has msgspec zmq && compgen -G "wheels/*.whl" > /dev/null; then
    "$python" -m pip install --quiet --no-index --no-deps --target "$out/packages" wheels/*.whl || exit 2
    export PYTHONPATH=$PYTHONPATH:$PWD/$out/packages
fi
has torch msgspec zmq || { echo "torch, msgspec or pyzmq is missing: pip install '.[gpu]', or see deploy/gpu/README.md"; exit 2; }

device=${DEVICE:-cuda}
[ "$device" = cpu ] || part smi 20 nvidia-smi
part quick 90 "$python" benchmarks/gpu_kv.py --device "$device" --quick --out "$out/quick"
if [ "$device" = cuda ]; then
    part gpu_kv 280 "$python" benchmarks/gpu_kv.py --out "$out"
    part grouped 90 "$python" benchmarks/gpu_kv.py --heads 8 --parts exact,bandwidth,ipc --out "$out/grouped"
fi
if has vllm psutil aiohttp httpx rich && [ "$device" = cuda ]; then
    part doctor 60 "$python" -m llumnix doctor --instances 1
    part equality 600 "$python" benchmarks/equality.py
else
    echo "== vLLM is not here, or no GPU: nothing was served"
fi
exit $failed
