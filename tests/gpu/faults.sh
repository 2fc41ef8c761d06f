#!/usr/bin/env bash
# Faults on a GPU, with programs that were built before (here or elsewhere):
#
#     tests/gpu/faults.sh [--build DIR] [--device N[,N]|host|standin|standin2] [--part N]... [--seed N] [--share N]
#
#   part 1  SIGKILLs at random: 200 of workers, 50 of the trainer, 50 of a broker
#   part 2  20 SIGSTOPs, and SIGCONT later, of a worker, of the trainer, of a broker each; 10,000 updates, staged
#           and direct, under an engine's steps and without them; when the last write of a killed process is
#   part 3  200 communicators, and brokers that start anew
#
# All parts by default, in about nine minutes on one H100: for commands of limited time say which. --seed (1) is that
# of the first job of chaos.py, the others count from there; --share divides every count. With two GPUs (`0,1`) the
# trainer and the lead are on the first, the other broker on the second, workers on both. `host` needs no GPU, `standin`
# takes the driver and NCCL of BUILD/standin, `standin2` two of its GPUs. Logs are under $OUT
# (default: a temporary folder); a table comes last, and behind it "faults: ok jobs=N failed=0".
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
usage="usage: tests/gpu/faults.sh [--build DIR] [--device N[,N]|host|standin|standin2] [--part N]... [--seed N] [--share N]"
build=$root/build
device=0
seed=1
share=1
parts=
while (($#)); do
	case $1 in
	--build | --device | --part | --seed | --share)
		(($# > 1)) || { echo "$usage" >&2; exit 2; }
		;;&
	--build) build=$2 ;;
	--device) device=$2 ;;
	--part)
		[[ $2 == [123] ]] || { echo "faults.sh: there are parts 1, 2 and 3" >&2; exit 2; }
		parts+=" $2"
		;;
	--seed) seed=$2 ;;
	--share) share=$2 ;;
	--help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit 0 ;;
	*) echo "$usage" >&2; exit 2 ;;
	esac
	shift 2
done
logs=${OUT:-$(mktemp -d)}
export PYTHONDONTWRITEBYTECODE=1
export LD_LIBRARY_PATH=$build/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-lo}
if [[ -z ${STREW_NCCL:-} ]]; then
	# PyTorch brings an NCCL of its own; the linker's may be another one.
	STREW_NCCL=$(python3 -c 'import nvidia.nccl, os
print(os.path.join(list(nvidia.nccl.__path__)[0], "lib", "libnccl.so.2"))' 2>/dev/null) || STREW_NCCL=
	export STREW_NCCL
fi
memory=(--device "$device")
small=()
case $device in
host) memory=() ;;
standin | standin2)
	LD_LIBRARY_PATH=$build/standin:$LD_LIBRARY_PATH
	unset STREW_NCCL
	memory=(--device 0) small=(--small)
	[[ $device == standin ]] || { memory=(--device 0,1); export STANDIN_DEVICES=2; }
	;;
esac
# A trainer and an engine, each with a GPU of its own where there are two.
one_each=("${memory[@]}")
if [[ ${memory[1]:-} == *,* ]]; then
	one_each=(--device "${memory[1]%%,*}" --worker-device "${memory[1]##*,}")
fi
table=() failed=0

# Runs a job and adds a line to the table; 77 is a skip.
job() {
	local name=$1 code=0 start=$SECONDS word=ok last
	shift
	printf '%s: %s\n' "$name" "$*"
	"$@" >"$logs/$name.log" 2>"$logs/$name.err" || code=$?
	last=$(tail -n 1 "$logs/$name.log")
	if ((code == 77)); then
		word=skipped
	elif ((code)); then
		word=FAILED failed=$((failed + 1))
		echo "code $code, $logs/$name.log"
		tail -n 25 "$logs/$name.log" "$logs/$name.err"
	fi
	table+=("$(printf '%-20s %-8s %4d s  %s' "$name" "$word" $((SECONDS - start)) "$last")")
}

# At least one of what there should be.
some() {
	echo $((($1 + share - 1) / share))
}

chaos() {
	local name=$1 rounds=$2
	shift 2
	job "$name" python3 "$root/tests/faults/chaos.py" "$build/bin" "${memory[@]}" --nodes 2 \
		--seed "$seed" --count "$(some "$rounds")" --scale 8 --slot 16M "$@"
	seed=$((seed + 1))
}

steps() {
	job "steps-$1-$2" "$build/bin/steps" "$build/bin/strewd" "${one_each[@]}" --apply "$1" \
		--read "$2" --updates "$(some 10000)"
	grep -h 'p50' "$logs/steps-$1-$2.log"
}

part_1() {
	chaos kill-workers 50 --victim worker --groups 4 --at-once 4
	chaos kill-trainer 50 --victim trainer
	chaos kill-broker 50 --victim broker
}

part_2() {
	chaos stop-worker 20 --victim stop-worker
	chaos stop-trainer 20 --victim stop-trainer
	chaos stop-broker 20 --victim stop-broker
	for apply in staged direct; do
		steps "$apply" always
		steps "$apply" seldom
	done
	if [[ $device == host ]]; then
		echo "last_write: it takes a GPU"
	else
		job last_write "$build/bin/last_write" "$(some 10)" "${small[@]}"
	fi
}

part_3() {
	job epochs python3 "$root/tests/faults/epochs.py" "$build/bin" "${memory[@]}" \
		--count "$(some 200)"
	grep -h '^lead,\|^node,' "$logs/epochs.log"
}

if [[ ${#memory[@]} -gt 0 && $device != standin* ]]; then
	nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
fi
for part in ${parts:-1 2 3}; do
	"part_$part"
done
printf '%s\n' "${table[@]}"
((failed == 0)) && word=ok || word=FAILED
echo "faults: $word jobs=${#table[@]} failed=$failed"
((failed == 0))
