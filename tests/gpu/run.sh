#!/usr/bin/env bash
# Everything that needs a GPU, with programs that were built before (here or elsewhere):
#
#     tests/gpu/run.sh [--build DIR] [--config LLAMA.json] [--quick]
#
# A line per part and their logs under $OUT (default: a temporary folder); the last line is
# "gpu: ok parts=N failed=0". Takes about four minutes on one H100; --quick leaves the large model out.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
build=$root/build
config=$root/bench/models/llama-3.1-8b.json
quick=0
usage="usage: tests/gpu/run.sh [--build DIR] [--config LLAMA.json] [--quick]"
while (($#)); do
	case $1 in
	--help) echo "$usage"; exit 0 ;;
	--build | --config)
		(($# > 1)) || { echo "$1 needs a value; $usage" >&2; exit 2; }
		printf -v "${1#--}" '%s' "$2"
		shift ;;
	--quick) quick=1 ;;
	*) echo "$1: no such option; $usage" >&2; exit 2 ;;
	esac
	shift
done
logs=${OUT:-$(mktemp -d)}
export LD_LIBRARY_PATH=$build/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-lo}
if [[ -z ${STREW_NCCL:-} ]]; then
	# PyTorch brings an NCCL of its own; the linker's may be another one.
	STREW_NCCL=$(python3 -c 'import nvidia.nccl, os
print(os.path.join(list(nvidia.nccl.__path__)[0], "lib", "libnccl.so.2"))' 2>/dev/null) || STREW_NCCL=
	export STREW_NCCL
fi
parts=0 failed=0

part() {
	local name=$1 code=0 start=$SECONDS
	shift
	"$@" >"$logs/$name.log" 2>&1 || code=$?
	parts=$((parts + 1))
	if ((code == 0)); then
		printf '%-28s ok      %4d s  %s\n' "$name" $((SECONDS - start)) \
			"$(tail -n 1 "$logs/$name.log")"
	else
		failed=$((failed + 1))
		printf '%-28s FAILED  code %d, %s/%s.log\n' "$name" "$code" "$logs" "$name"
		tail -n 25 "$logs/$name.log"
	fi
}

# A BERT of all-MiniLM-L6-v2's shapes with fresh random weights, pushed from host memory.
push_check() {
	local folder=$1

	mkdir -p "$folder"
	cat >"$folder/config.json" <<'EOF'
{"model_type": "bert", "hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 12,
 "num_hidden_layers": 6, "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2}
EOF
	PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$root/tests/e2e python3 -c 'import sys, test_bad, scene
scene.safetensors(sys.argv[1] + "/model.safetensors", test_bad.bert(sys.argv[1] + "/config.json"))
' "$folder" || return 1
	"$root/scripts/demo.sh" --no-build --build "$build" --backend cuda \
		--checkpoint "$folder/model.safetensors"
}

# Two brokers on one GPU with equal host ids: NCCL would refuse, so the lead does, with advice.
equal_hosts() {
	local folder=$1 lead code=0 port=17733

	mkdir -p "$folder"
	NCCL_HOSTID=same "$build/bin/strewd" --backend cuda --socket "$folder/lead/b.sock" \
		--listen "127.0.0.1:$port" 2>"$folder/lead.log" &
	lead=$!
	NCCL_HOSTID=same timeout 30 "$build/bin/strewd" --backend cuda --socket "$folder/second/b.sock" \
		--join "127.0.0.1:$port" 2>"$folder/second.log" || code=$?
	kill "$lead"
	wait "$lead"
	cat "$folder"/*.log
	((code == 1)) && grep "on one GPU of one host" "$folder/second.log"
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
# With it bytes that go by pinned host memory, from a GPU to itself or to the next: GPUs without peer
# access are not needed for that, and the product has no switch that forces it.
part gpu_check "$build/bin/gpu_check"
part last_write "$build/bin/last_write"
part nccl_check "$build/bin/nccl_check"
for gate in held live; do
	for apply in staged direct; do
		part "demo-$gate-$apply" "$root/scripts/demo.sh" --no-build --build "$build" \
			--backend cuda --gate "$gate" --apply "$apply"
	done
done
part demo-ranks "$root/scripts/demo.sh" --no-build --build "$build" --backend cuda --ranks 2
for apply in staged direct; do
	part "demo-malloc-$apply" "$root/scripts/demo.sh" --no-build --build "$build" \
		--backend cuda --malloc --apply "$apply"
done
part catching_up env PYTHONDONTWRITEBYTECODE=1 python3 "$root/tests/e2e/test_groups.py" "$build/bin" \
	catching_up_on_a_gpu
part push_check push_check "$scratch/push"
part equal_hosts equal_hosts "$scratch/hosts"
if ((!quick)); then
	part torch_check env PYTHONPATH="$root/python" STREW_LIBRARY="$build/lib/libstrew.so.0" \
		python3 "$root/tests/gpu/torch_check.py" --config "$config" --versions 2
	grep -h '^alloc=\|^version' "$logs/torch_check.log"
fi
((failed == 0)) && word=ok || word=FAILED
echo "gpu: $word parts=$parts failed=$failed"
((failed == 0))
